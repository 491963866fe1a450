//! PID 1 of the measured guest, whatever VMM boots it: says that it runs, serves the network if it has one, and stays.

fn main() -> ! {
    println!("{}", bench::INIT_LINE);
    if let Err(error) = bench::link::serve_guest() {
        println!("bench: {error:#}");
        // The machine ends with its init, and whoever waits for it hears of it.
        std::process::exit(1);
    }
    loop {
        std::thread::park();
    }
}
