use super::*;

fn mount(kind: &str, source: &str, options: &[&str]) -> Mount {
    Mount { kind: kind.into(), source: source.into(), options: options.iter().map(ToString::to_string).collect() }
}

fn blob(number: usize) -> Mount {
    mount("erofs", &format!("/s/{number}/layer.erofs"), &["ro", "loop"])
}

fn image() -> Mount {
    mount("ext4", "/s/9/rwlayer.img", &["rw", "loop"])
}

fn file(number: usize) -> LayerFile {
    LayerFile { blob: format!("/s/{number}/layer.erofs").into(), devices: Vec::new() }
}

/// Of an active snapshot with a writable image.
const ON_IMAGE: [&str; 4] = [
    "X-containerd.mkdir.path={{ mount 0 }}/upper:0755",
    "X-containerd.mkdir.path={{ mount 0 }}/work:0755",
    "workdir={{ mount 0 }}/work",
    "upperdir={{ mount 0 }}/upper",
];

const IN_DIRECTORIES: [&str; 2] = ["workdir=/s/9/work", "upperdir=/s/9/fs"];

fn overlay(options: &[&str], lower: &str) -> Mount {
    mount("format/mkdir/overlay", "overlay", &[options, &[lower]].concat())
}

fn refusal(mounts: &[Mount]) -> String {
    parse(mounts).unwrap_err().to_string()
}

#[test]
fn a_container_writes_to_an_image_or_to_its_snapshots_directory() {
    let on_image = [image(), blob(2), blob(1), overlay(&ON_IMAGE, "lowerdir={{ overlay 1 2 }}")];
    let upper = Upper::Image("/s/9/rwlayer.img".into());
    assert_eq!(parse(&on_image).unwrap(), LayerStack { lower: vec![file(2), file(1)], upper });
    let in_directory = [blob(1), overlay(&IN_DIRECTORIES, "lowerdir={{ mount 0 }}")];
    let upper = Upper::Directory("/s/9/fs".into());
    assert_eq!(parse(&in_directory).unwrap(), LayerStack { lower: vec![file(1)], upper });
}

#[test]
fn an_image_that_containerd_is_to_make_is_attached_when_it_has() {
    let options = ["X-containerd.mkfs.fs=ext4", "X-containerd.mkfs.size=67108864", "rw", "loop"];
    let made = mount("mkfs/ext4", "/s/9/rwlayer.img", &options);
    let stack = [made, blob(1), overlay(&ON_IMAGE, "lowerdir={{ mount 1 }}")];
    assert_eq!(parse(&stack).unwrap().upper, Upper::Image("/s/9/rwlayer.img".into()));
    let other = mount("mkfs/ext4", "/s/9/rwlayer.img", &["X-containerd.mkfs.fs=xfs"]);
    assert!(refusal(&[other, stack[1].clone(), stack[2].clone()]).contains("X-containerd.mkfs.fs=xfs"));
}

#[test]
fn a_view_has_nothing_to_write_to() {
    let view = [blob(2), blob(1), mount("format/overlay", "overlay", &["lowerdir={{ overlay 0 1 }}", "index=off"])];
    assert_eq!(parse(&view).unwrap(), LayerStack { lower: vec![file(2), file(1)], upper: Upper::None });
}

#[test]
fn a_merged_image_names_the_files_that_have_its_content() {
    let options = ["ro", "loop", "device=/s/1/layer.erofs", "device=/s/2/layer.erofs"];
    let merged = mount("erofs", "/s/2/fsmeta.erofs", &options);
    let devices = vec!["/s/1/layer.erofs".into(), "/s/2/layer.erofs".into()];
    let expected = LayerFile { blob: "/s/2/fsmeta.erofs".into(), devices };
    let below = [blob(3), merged.clone(), overlay(&IN_DIRECTORIES, "lowerdir={{ overlay 0 1 }}")];
    assert_eq!(parse(&below).unwrap().lower, [file(3), expected.clone()]);
    let view = [merged, mount("format/bind", "{{ mount 0 }}", &["ro", "rbind"])];
    assert_eq!(parse(&view).unwrap(), LayerStack { lower: vec![expected], upper: Upper::None });
}

#[test]
fn an_image_without_layers_is_what_is_written() {
    let options = ["X-containerd.mkdir.path={{ mount 0 }}/upper:0755", "rw", "rbind"];
    let alone = [image(), mount("format/mkdir/bind", "{{ mount 0 }}/upper", &options)];
    let upper = Upper::Image("/s/9/rwlayer.img".into());
    assert_eq!(parse(&alone).unwrap(), LayerStack { lower: Vec::new(), upper });
    let read_only = mount("format/mkdir/bind", "{{ mount 0 }}/upper", &["ro", "rbind"]);
    assert!(refusal(&[image(), read_only]).ends_with("the option ro is not supported there"));
}

#[test]
fn other_stacks_are_refused_by_name() {
    let overlay_of = |lower: &str| overlay(&IN_DIRECTORIES, lower);
    let cases = [
        (vec![blob(1), mount("bind", "/x", &[])], "a stack of mounts (erofs, bind)"),
        (vec![mount("bind", "/x", &["ro"]), overlay_of("lowerdir={{ mount 0 }}")], "mount \"bind\" of /x"),
        (vec![blob(1), image(), overlay_of("lowerdir={{ mount 0 }}")], "mount \"ext4\" of /s/9/rwlayer.img"),
        (vec![image(), overlay(&ON_IMAGE, "lowerdir={{ mount 0 }}")], "a stack of mounts (ext4, format/mkdir/overlay)"),
        (vec![blob(1), mount("format/bind", "{{ mount 0 }}", &["rw"])], "the option rw"),
        (vec![blob(1), mount("format/bind", "{{ mount 0 }}", &[])], "it lacks the option ro"),
        (vec![blob(1), mount("format/bind", "{{ mount 1 }}", &["ro"])], "its source is not the layer"),
        (vec![mount("erofs", "/b", &["loop"]), overlay_of("lowerdir={{ mount 0 }}")], "it lacks the option ro"),
        (vec![mount("erofs", "/b", &["ro", "device=b"]), overlay_of("")], "the option device=b"),
        (vec![mount("erofs", "/b", &["ro", "X-containerd.dmverity=/b.v"]), overlay_of("")], "set dmverity_mode"),
    ];
    for (mounts, named) in cases {
        let refusal = refusal(&mounts);
        assert!(refusal.contains(named), "{refusal}");
    }
}

#[test]
fn an_overlay_of_another_form_is_refused_by_its_option() {
    for (options, named) in [
        (&["lowerdir={{ mount 0 }}"][..], "lowerdir={{ mount 0 }}"),
        (&["lowerdir={{ overlay 1 0 }}"], "lowerdir={{ overlay 1 0 }}"),
        (&["lowerdir={{ overlay 0 2 }}"], "lowerdir={{ overlay 0 2 }}"),
        (&["lowerdir={{overlay 0 1}}"], "lowerdir={{overlay 0 1}}"),
        (&["lowerdir=/a:/b"], "lowerdir=/a:/b"),
        (&["lowerdir={{ overlay 0 1 }}", "lowerdir={{ overlay 0 1 }}"], "lowerdir={{ overlay 0 1 }}"),
        (&["lowerdir={{ overlay 0 1 }}", "volatile"], "volatile"),
        (&["lowerdir={{ overlay 0 1 }}", "uidmap=0:1000:1"], "uidmap=0:1000:1"),
        (&["lowerdir={{ overlay 0 1 }}", "X-containerd.mkdir.path=/etc:0755"], "X-containerd.mkdir.path=/etc:0755"),
        (&["workdir=/w", "upperdir=/u"], "it lacks the option lowerdir"),
        (&["lowerdir={{ overlay 0 1 }}", "upperdir=/u"], "its upperdir and workdir"),
        (&["lowerdir={{ overlay 0 1 }}", "upperdir={{ mount 0 }}/upper", "workdir={{ mount 0 }}/work"], "upperdir"),
    ] {
        let refusal = refusal(&[blob(2), blob(1), mount("format/mkdir/overlay", "overlay", options)]);
        assert!(refusal.contains(named), "{refusal}");
    }
}

/// The entries of a stack have their meaning by their places: in any other order they mean nothing.
#[test]
fn no_other_order_of_a_stack_is_taken() {
    let stack = [image(), blob(2), blob(1), overlay(&ON_IMAGE, "lowerdir={{ overlay 1 2 }}")];
    let mut taken = 0;
    for order in 0..256 {
        let chosen: Vec<_> = (0..4).map(|place| stack[order >> (2 * place) & 3].clone()).collect();
        if let Ok(made) = parse(&chosen) {
            taken += 1;
            assert_eq!(made.upper, Upper::Image("/s/9/rwlayer.img".into()));
            assert_eq!(made.lower.len(), 2);
        }
    }
    // The layers may be any two of the two.
    assert_eq!(taken, 4);
}

#[test]
fn layers_have_a_limit() {
    let many: Vec<_> = (0..=MAX_LAYERS).map(blob).chain([overlay(&[], "")]).collect();
    assert!(refusal(&many).contains("129 layers are more than 128"));
}
