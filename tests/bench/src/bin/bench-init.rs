//! PID 1 of the guest whose boot is measured, whatever VMM boots it: says that it runs, and stays.

fn main() -> ! {
    println!("{}", bench::INIT_LINE);
    loop {
        std::thread::park();
    }
}
