//! Charts of a result, as SVG: how long things take by their parts, and what they hold.

use super::result::BenchResult;
use super::row::{CONTENDERS, is_timed, unit};
use anyhow::{Result, anyhow};
use plotters::prelude::{
    ChartBuilder, Color, IntoDrawingArea, IntoFont, PathElement, RGBColor, Rectangle, SVGBackend, SeriesLabelPosition,
    WHITE,
};
use std::path::{Path, PathBuf};

/// Rows that add up to one bar for each contender.
struct Chart {
    file: &'static str,
    title: &'static str,
    rows: &'static [&'static str],
}

const CHARTS: &[Chart] = &[
    Chart { file: "vmm.svg", title: "VMM start to guest init", rows: &["vmm-init"] },
    Chart { file: "agent.svg", title: "VMM start to the agent's first answer", rows: &["vmm-agent"] },
    Chart { file: "start.svg", title: "Start of a pod", rows: &["pod-run", "pod-create", "pod-start"] },
    Chart {
        file: "phases.svg",
        title: "Start of a pod, by programs",
        rows: &["phase-containerd", "phase-shim", "phase-sandbox", "phase-create", "phase-start"],
    },
    Chart {
        file: "exits.svg",
        title: "Exits from the guest until its init",
        rows: &["exits-page", "exits-port", "exits-msr", "exits-cpuid", "exits-halt", "exits-other"],
    },
    Chart { file: "syscalls.svg", title: "System calls of the node while a pod starts", rows: &["syscalls"] },
    Chart { file: "exec-first.svg", title: "First ExecSync of true in a pod", rows: &["exec-first"] },
    Chart { file: "exec.svg", title: "ExecSync of true after that", rows: &["exec"] },
    Chart { file: "stop.svg", title: "Stop and removal of a pod", rows: &["pod-stop", "pod-remove"] },
    Chart { file: "memory.svg", title: "Node's memory for an idle pod", rows: &["memory-per-pod"] },
    Chart { file: "density.svg", title: "Idle pods in 512 MiB", rows: &["density"] },
    Chart { file: "idle.svg", title: "Processor of 40 idle pods", rows: &["idle-processor"] },
    Chart { file: "churn.svg", title: "Start and removal of a pod, 100 in a row", rows: &["churn"] },
    Chart { file: "link.svg", title: "TCP from a node to its guest", rows: &["link-down"] },
    Chart { file: "network.svg", title: "TCP from a pod", rows: &["network-up"] },
    Chart { file: "block.svg", title: "A random read of 4 KiB", rows: &["block-random-read-1"] },
];

const COLOURS: [RGBColor; 6] = [
    RGBColor(31, 90, 150),
    RGBColor(230, 140, 40),
    RGBColor(90, 160, 90),
    RGBColor(190, 70, 70),
    RGBColor(130, 100, 170),
    RGBColor(120, 120, 120),
];

/// Pixels.
const WIDTH: u32 = 720;
const HEAD: u32 = 110;
const BAR: u32 = 40;

/// Writes what the result has figures for, and returns the files.
pub fn draw(result: &BenchResult, directory: &Path) -> Result<Vec<PathBuf>> {
    std::fs::create_dir_all(directory)?;
    let mut files = Vec::new();
    for chart in CHARTS {
        let bars: Vec<Bar> = CONTENDERS.iter().filter_map(|contender| Bar::new(chart, contender, result)).collect();
        if bars.is_empty() {
            continue;
        }
        let file = directory.join(chart.file);
        draw_chart(chart, &bars, &axis(chart.rows[0], result), &file)
            .map_err(|error| anyhow!("cannot draw {}: {error}", file.display()))?;
        files.push(file);
    }
    Ok(files)
}

struct Bar {
    contender: &'static str,
    parts: Vec<f64>,
}

impl Bar {
    fn new(chart: &Chart, contender: &'static str, result: &BenchResult) -> Option<Self> {
        result.find(chart.rows[0], contender)?;
        // What is nothing is no figure.
        let part = |row: &&str| result.find(row, contender).map_or(0.0, |figure| figure.median);
        Some(Self { contender, parts: chart.rows.iter().map(part).collect() })
    }
}

/// Unit, and clock where it has one.
fn axis(row: &str, result: &BenchResult) -> String {
    let clock = result.clock.split(':').next().unwrap_or_default();
    if is_timed(row) { format!("{} (clock: {clock})", unit(row)) } else { unit(row).to_owned() }
}

fn draw_chart(chart: &Chart, bars: &[Bar], axis: &str, file: &Path) -> Result<(), Box<dyn std::error::Error>> {
    let count = u32::try_from(bars.len())?;
    let longest = bars.iter().map(|bar| bar.parts.iter().sum::<f64>()).fold(0.0, f64::max);
    // On the right of the longest bar, for the parts' names.
    let room = if chart.rows.len() > 1 { 1.5 } else { 1.1 };
    let area = SVGBackend::new(file, (WIDTH, HEAD + BAR * count)).into_drawing_area();
    area.fill(&WHITE)?;
    let mut plot = ChartBuilder::on(&area)
        .caption(chart.title, ("sans-serif", 20).into_font())
        .margin(10)
        .x_label_area_size(40)
        .y_label_area_size(140)
        .build_cartesian_2d(0.0..longest * room, f64::from(count)..0.0)?;
    let name = |place: &f64| {
        // Each bar is one high; its name stands at its middle.
        let bar = (0..count).find(|&bar| (f64::from(bar) + 0.5 - place).abs() < 1e-6);
        bar.and_then(|bar| bars.get(bar as usize)).map(|bar| bar.contender.to_owned()).unwrap_or_default()
    };
    plot.configure_mesh()
        .disable_y_mesh()
        .x_max_light_lines(1)
        .label_style(("sans-serif", 15))
        .x_desc(axis)
        .y_labels(bars.len() * 2 + 1)
        .y_label_formatter(&name)
        .draw()?;
    for (position, row) in chart.rows.iter().enumerate() {
        let colour = COLOURS[position % COLOURS.len()];
        let part = |(place, bar): (u32, &Bar)| {
            let start: f64 = bar.parts[..position].iter().sum();
            let (top, bottom) = (f64::from(place) + 0.2, f64::from(place) + 0.8);
            Rectangle::new([(start, top), (start + bar.parts[position], bottom)], colour.filled())
        };
        let series = plot.draw_series((0..count).zip(bars).map(part))?;
        if chart.rows.len() > 1 {
            series.label(*row).legend(move |(x, y)| PathElement::new([(x, y), (x + 16, y)], colour.stroke_width(6)));
        }
    }
    if chart.rows.len() > 1 {
        plot.configure_series_labels()
            .label_font(("sans-serif", 15))
            .position(SeriesLabelPosition::MiddleRight)
            .draw()?;
    }
    area.present()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::draw;
    use crate::bench::rows::result::tests::result;

    #[test]
    fn a_chart_names_its_contenders_and_rows_without_figures_have_none() {
        let directory = tempfile::tempdir().unwrap();
        let result = result(&[
            ("pod-run", "runc", 0.5),
            ("pod-create", "runc", 0.1),
            ("pod-start", "runc", 0.2),
            ("pod-run", "bulkhead-cold", 0.6),
            ("pod-create", "bulkhead-cold", 0.1),
            ("pod-start", "bulkhead-cold", 0.1),
            ("vmm-init", "qemu", 0.3),
            // Without the other reasons.
            ("exits-page", "qemu", 3.0),
        ]);
        let files = draw(&result, directory.path()).unwrap();
        let names: Vec<_> = files.iter().map(|file| file.file_name().unwrap().to_str().unwrap()).collect();
        assert_eq!(names, ["vmm.svg", "start.svg", "exits.svg"]);
        let text = std::fs::read_to_string(&files[1]).unwrap();
        for word in ["runc", "bulkhead-cold", "pod-create", "Start of a pod", "s (clock: instructions)"] {
            assert!(text.contains(word), "{word} is missing in {text}");
        }
    }
}
