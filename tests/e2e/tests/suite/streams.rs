//! stdin, stdout, stderr and terminals.

use e2e::terminal::Terminal;
use e2e::{BUSYBOX, Container, FOREVER, Running, noise, sha256};

crate::for_each_snapshotter!(
    output_is_byte_exact,
    input_reaches_a_command_up_to_its_end,
    a_terminal_follows_the_size_of_its_window,
    execs_have_streams_of_their_own,
);

/// 8 MiB of noise on stdout while its checksum goes to stderr.
fn output_is_byte_exact(snapshotter: &str) {
    let script = "head -c 8388608 /dev/urandom > /tmp/noise && sha256sum < /tmp/noise >&2 && cat /tmp/noise";
    let finished = Container::new(BUSYBOX, snapshotter).shell(script).run().success();
    assert_eq!(finished.stdout.len(), 8 << 20);
    assert_eq!(finished.stderr().split_whitespace().next(), Some(sha256(&finished.stdout).as_str()));
}

fn input_reaches_a_command_up_to_its_end(snapshotter: &str) {
    let input = noise(1 << 20);
    let finished = Container::new(BUSYBOX, snapshotter).command(&["/bin/sha256sum"]).run_with_input(&input).success();
    assert_eq!(finished.stdout().split_whitespace().next(), Some(sha256(&input).as_str()));
}

fn execs_have_streams_of_their_own(snapshotter: &str) {
    let running = Container::new(BUSYBOX, snapshotter).command(&FOREVER).start();
    let input = noise(1 << 20);
    let finished = running.exec_with_input(&["/bin/cat"], &input).success();
    assert!(finished.stdout == input, "{} bytes came back of {}", finished.stdout.len(), input.len());
    twenty_execs_at_once_each_get_their_own_output(&running);
}

fn a_terminal_follows_the_size_of_its_window(snapshotter: &str) {
    let container = Container::new(BUSYBOX, snapshotter).command(&["/bin/sh"]);
    let mut terminal = Terminal::start(&container.line(&["--rm", "--tty"]), 91, 33);
    terminal.expect("#");
    terminal.expect_from("stty size\n", "33 91");
    terminal.resize(123, 45);
    terminal.expect_from("stty size\n", "45 123");
    terminal.type_in("tty; exit 7\n");
    terminal.expect("/dev/");
    assert_eq!(terminal.finish(), 7);
}

fn twenty_execs_at_once_each_get_their_own_output(running: &Running) {
    std::thread::scope(|scope| {
        let execs: Vec<_> = (0..20)
            .map(|number| {
                scope.spawn(move || running.shell(&format!("echo out-{number}; echo err-{number} >&2; exit {number}")))
            })
            .collect();
        for (number, exec) in execs.into_iter().enumerate() {
            let finished = exec.join().expect("the exec's thread does not panic");
            assert_eq!(finished.stdout(), format!("out-{number}\n"), "stderr: {}", finished.stderr());
            assert!(finished.stderr().contains(&format!("err-{number}\n")), "{}", finished.stderr());
            assert_eq!(finished.code, i32::try_from(number).expect("below twenty"));
        }
    });
}
