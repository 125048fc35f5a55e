//! What a web page can do to a node without a token, by way of a real browser.

use std::collections::BTreeMap;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::time::timeout;

use crate::support::{Home, Node, http};

/// Time for the browser to start and the page to do its work, on a busy machine.
const PATIENCE: Duration = Duration::from_secs(120);

/// A name that the page's owner has lead wherever he likes.
const HOST: &str = "evil.example";

/// Changes what it can: by a form, and by requests that a page may send anywhere.
const PAGE: &str = r#"<!doctype html><body><iframe name="out"></iframe>
<form id="form" method="post" target="out" action="NODE/v1/kv/by-form?op=incr"></form><script>
const headers = {"content-type": "application/x-www-form-urlencoded"};
const post = (url, body) =>
  fetch(url, {method: "POST", mode: "no-cors", headers, body}).catch(() => {});
(async () => {
  document.getElementById("form").submit();
  await post("NODE/v1/batch", '{"ops":[{"op":"put","key":"by-fetch","value":"x"}]}');
  await post("NODE/v1/kv/kept?op=touch&ttl=1ms");
  await post("OPS/admin/log-level?level=debug");
  await new Promise((done) => setTimeout(done, 500));
  await fetch("/done");
})();
</script></body>"#;

/// A browser's process and all that it started. Dropped: killed.
struct Browser(Child);

impl Browser {
    fn start(folder: &Path, arguments: &[&str]) -> Option<Self> {
        let spawned = Command::new("chromium")
            .args(["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"])
            .arg(format!("--user-data-dir={}", folder.display()))
            .arg(format!("--host-resolver-rules=MAP {HOST} 127.0.0.1"))
            .args(arguments)
            .env("HOME", folder)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn();
        match spawned {
            Ok(child) => Some(Self(child)),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
            Err(error) => panic!("chromium does not start: {error}"),
        }
    }

    /// What it printed until its end.
    fn output(mut self) -> String {
        std::io::read_to_string(self.0.stdout.take().unwrap()).unwrap()
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        let _ = killpg(Pid::from_raw(self.0.id() as i32), Signal::SIGKILL);
        let _ = self.0.wait();
    }
}

/// Serves the page until it says that it is done.
async fn serve_page(listener: &TcpListener, page: &str) {
    loop {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut head = [0; 4096];
        let read = stream.read(&mut head).await.unwrap();
        let done = head[..read].starts_with(b"GET /done");
        let body = if head[..read].starts_with(b"GET / ") { page } else { "" };
        let answer = format!(
            "HTTP/1.1 200 OK\r\ncontent-type: text/html\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}",
            body.len()
        );
        let _ = stream.write_all(answer.as_bytes()).await;
        if done {
            return;
        }
    }
}

/// Has a browser visit the page, and then the node by the page's name.
async fn visit(home: &Home, node: &Node) -> Option<BTreeMap<&'static str, bool>> {
    let keep = || http().put(node.url("kept")).body("for my eyes only").send();
    keep().await.unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let addresses = [("NODE", node.client), ("OPS", node.ops)];
    let page = addresses.iter().fold(PAGE.to_owned(), |page, (name, port)| {
        page.replace(name, &format!("http://127.0.0.1:{port}"))
    });
    let url = format!("http://{HOST}:{port}/");
    let folder = home.dir.path().join("browser");
    let browser = Browser::start(&folder, &["--remote-debugging-port=0", &url])?;
    timeout(PATIENCE, serve_page(&listener, &page)).await.expect("the page did its work");
    drop(browser);
    let status = async |key| http().get(node.url(key)).send().await.unwrap().status();
    let (by_form, by_fetch) = (status("by-form").await == 200, status("by-fetch").await == 200);
    let expired = status("kept").await != 200;
    keep().await.unwrap();
    let url = format!("http://{HOST}:{}/v1/kv/kept?format=json", node.client);
    let browser = Browser::start(&folder, &["--dump-dom", "--timeout=20000", &url])?;
    let shown = tokio::task::spawn_blocking(|| browser.output()).await.unwrap();
    Some(BTreeMap::from([
        ("stored by form", by_form),
        ("stored by fetch", by_fetch),
        ("made to expire", expired),
        ("acted", node.log().contains("log level set")),
        ("read", shown.contains("for my eyes only")),
    ]))
}

/// What could be done is shown first, or nothing would be shown by its not being done.
#[tokio::test]
async fn a_web_page_can_neither_write_to_a_node_nor_read_from_it() {
    let home = Home::new(json!({ "allowed_hosts": ["*"], "allowed_origins": ["*"] }));
    let node = home.start().await;
    let Some(done) = visit(&home, &node).await else {
        println!("SKIP: no chromium here; `scripts/setup.sh test` installs it");
        return;
    };
    assert!(done.values().all(|done| *done), "where everything is allowed: {done:?}");
    drop(node);
    let home = Home::new(json!({}));
    let node = home.start().await;
    let done = visit(&home, &node).await.unwrap();
    assert!(done.values().all(|done| !done), "{done:?}");
}
