//! Files that commands write: they appear whole or not at all.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::thread;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::program::aegiskv;
use crate::server::Server;

/// The first page of a listing that goes on.
const PAGE: &str = r#"{"keys":[{"key":"a","value":"1"}],"cursor":"more"}"#;

fn names(dir: &Path) -> Vec<String> {
    let names = fs::read_dir(dir).expect("it is there");
    names.map(|entry| entry.expect("read").file_name().to_string_lossy().into_owned()).collect()
}

/// A server that answers one page, and `then` with the next request. Answers its address.
fn server_of_a_page(then: impl FnOnce(TcpStream) + Send + 'static) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port is free");
    let addr = listener.local_addr().expect("it has one").to_string();
    thread::spawn(move || {
        let (mut stream, _) = listener.accept().expect("somebody calls");
        let asked = |stream: &mut TcpStream| {
            let mut request = Vec::new();
            while !request.ends_with(b"\r\n\r\n") {
                let mut byte = [0];
                stream.read_exact(&mut byte).expect("a request comes");
                request.extend_from_slice(&byte);
            }
        };
        asked(&mut stream);
        let head = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length";
        write!(stream, "{head}: {}\r\n\r\n{PAGE}", PAGE.len()).expect("it is read");
        asked(&mut stream);
        drop(listener);
        then(stream);
    });
    addr
}

#[test]
fn a_dump_whose_server_dies_half_way_leaves_nothing_in_the_way_of_the_next() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("dump.ndjson");
    let file = path.to_str().expect("its path is text");
    let addr = server_of_a_page(drop);
    let outcome = aegiskv(&["dump", file, "--addr", &addr]).run();
    assert_eq!(outcome.code, 1, "{}", outcome.stderr);
    assert_eq!(names(folder.path()), Vec::<String>::new());
    let server = Server::start(&[]);
    server.call(&["put", "k", "v"]).run().done();
    server.call(&["dump", file]).run().done();
    assert_eq!(names(folder.path()), ["dump.ndjson"]);
}

#[test]
fn a_dump_that_is_told_to_end_leaves_nothing() {
    for signal in [Signal::SIGINT, Signal::SIGTERM] {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("dump.ndjson");
        let (asked, is_asked) = mpsc::channel();
        let (ended, has_ended) = mpsc::channel::<()>();
        let addr = server_of_a_page(move |_stream| {
            asked.send(()).expect("somebody waits");
            let _ = has_ended.recv();
        });
        let mut command = Command::new(env!("CARGO_BIN_EXE_aegiskv"));
        command.arg("dump").arg(&path).args(["--addr", &addr]).stderr(Stdio::piped());
        let child = command.spawn().expect("the binary starts");
        is_asked.recv().expect("the second page is asked for");
        assert!(!path.exists() && names(folder.path()).len() == 1, "it is under way to its name");
        kill(Pid::from_raw(child.id() as i32), signal).expect("it runs");
        let outcome = child.wait_with_output().expect("it ends");
        drop(ended);
        let told = String::from_utf8_lossy(&outcome.stderr).into_owned();
        assert_eq!(outcome.status.code(), Some(1), "{told}");
        assert!(told.contains("is not written"), "{told}");
        assert_eq!(names(folder.path()), Vec::<String>::new(), "{signal}");
    }
}

#[test]
fn a_pair_of_key_and_certificate_appears_whole_or_not() {
    let folder = tempfile::tempdir().expect("a folder");
    let dir = folder.path().to_str().expect("its path is text");
    fs::create_dir(folder.path().join("ca.crt")).expect("in the way");
    assert_eq!(aegiskv(&["certs", "init", "--dir", dir]).run().code, 1);
    assert_eq!(names(folder.path()), ["ca.crt"]);
    fs::remove_dir(folder.path().join("ca.crt")).expect("it is empty");
    aegiskv(&["certs", "init", "--dir", dir]).run().done();
    let mut made = names(folder.path());
    made.sort_unstable();
    assert_eq!(made, ["ca.crt", "ca.key"]);
}

#[test]
fn manual_pages_replace_those_there_were() {
    let folder = tempfile::tempdir().expect("a folder");
    let dir = folder.path().to_str().expect("its path is text");
    fs::write(folder.path().join("aegiskv.1"), "old").expect("written");
    aegiskv(&["man", "--dir", dir]).run().done();
    let page = fs::read_to_string(folder.path().join("aegiskv.1")).expect("it is there");
    assert!(page.contains("aegiskv"), "{page}");
    assert!(names(folder.path()).iter().all(|name| name.ends_with(".1")));
}
