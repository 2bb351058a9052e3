//! The Hub, played by two servers on loopback: the endpoint, and the storage it redirects to.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use paligemma::checkpoint::hub::{
    self, HubId, HubOptions, Progress, Removed, Snapshot, Token, Want, cached_models, remove,
};
use paligemma::checkpoint::locate::{Source, locate};
use paligemma::{Error, Kind};
use ring::digest::{SHA256, digest};
use tempfile::TempDir;

const REPO: &str = "google/tiny-pt-224";
const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";
const OLDER: &str = "89abcdef0123456789abcdef0123456789abcdef";
const WEIGHTS: &str = "model.safetensors";
const SIZE: usize = 300_000;

// ---- the servers -------------------------------------------------------------------------------------------

#[derive(Debug, Clone)]
struct Request {
    method: String,
    path: String,
    headers: BTreeMap<String, String>,
}

#[derive(Default)]
struct Reply {
    status: u16,
    headers: Vec<(&'static str, String)>,
    body: Vec<u8>,
    /// The connection ends after so many bytes of the body, though the header promises all.
    cut: Option<usize>,
}

/// A server on 127.0.0.1 that ends with the test: one request a connection, each read bounded in time.
struct Server {
    port: u16,
    log: Arc<Mutex<Vec<Request>>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    fn start(answer: impl Fn(&Request) -> Reply + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let (log, stop) = (Arc::new(Mutex::new(Vec::new())), Arc::new(AtomicBool::new(false)));
        let (answer, shared_log, shared_stop) = (Arc::new(answer), log.clone(), stop.clone());
        let thread = std::thread::spawn(move || {
            let mut open = Vec::new();
            for stream in listener.incoming().take(5_000) {
                if shared_stop.load(Ordering::SeqCst) {
                    break;
                }
                let (answer, log) = (answer.clone(), shared_log.clone());
                let Ok(stream) = stream else { continue };
                open.push(std::thread::spawn(move || {
                    // A client that goes away is its own business.
                    let _ = serve(stream, &*answer, &log);
                }));
            }
            for thread in open {
                let _ = thread.join();
            }
        });
        Server { port, log, stop, thread: Some(thread) }
    }

    fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    fn log(&self) -> Vec<Request> {
        self.log.lock().unwrap().clone()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        let _ = TcpStream::connect(("127.0.0.1", self.port));
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn serve(
    mut stream: TcpStream,
    answer: &(impl Fn(&Request) -> Reply + ?Sized),
    log: &Mutex<Vec<Request>>,
) -> std::io::Result<()> {
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    stream.set_write_timeout(Some(Duration::from_secs(5)))?;
    let mut lines = BufReader::new(stream.try_clone()?.take(1 << 16)).lines();
    let first = lines.next().unwrap_or_else(|| Ok(String::new()))?;
    let mut words = first.split(' ');
    let mut word = || words.next().unwrap_or_default().to_owned();
    let mut request = Request { method: word(), path: word(), headers: BTreeMap::new() };
    for line in lines {
        let line = line?;
        let Some((name, value)) = line.split_once(':') else { break };
        request.headers.insert(name.to_ascii_lowercase(), value.trim().to_owned());
    }
    if request.method.is_empty() {
        return Ok(());
    }
    log.lock().unwrap().push(request.clone());
    let reply = answer(&request);
    let mut head = format!("HTTP/1.1 {} x\r\nConnection: close\r\n", reply.status);
    for (name, value) in &reply.headers {
        head += &format!("{name}: {value}\r\n");
    }
    if !reply.headers.iter().any(|(name, _)| *name == "Content-Length") {
        head += &format!("Content-Length: {}\r\n", reply.body.len());
    }
    stream.write_all(head.as_bytes())?;
    stream.write_all(b"\r\n")?;
    if request.method != "HEAD" {
        stream.write_all(&reply.body[..reply.cut.unwrap_or(reply.body.len()).min(reply.body.len())])?;
    }
    stream.flush()
}

/// What goes wrong, and how often.
#[derive(Clone)]
enum Fault {
    /// The connection ends after so many bytes of the answer.
    Cut(usize),
    /// This answer instead.
    Status(u16, Vec<(&'static str, String)>),
    /// Other bytes than the hash names.
    OtherBytes(Vec<u8>),
    /// All bytes, whatever range was asked for.
    NoRange,
    /// Both: from the start, and never farther than this.
    NoRangeCut(usize),
    /// These headers instead of those of the same name.
    Headers(Vec<(&'static str, String)>),
}

/// Where a fault sits.
#[derive(Clone, Copy, PartialEq, Debug)]
enum At {
    Listing,
    Head,
    Small,
    Storage,
}

#[derive(Default)]
struct Content {
    files: Mutex<BTreeMap<String, Vec<u8>>>,
    /// Names that the listing gives besides.
    extra: Mutex<Vec<String>>,
    revisions: Mutex<BTreeMap<String, String>>,
    faults: Mutex<Vec<(At, usize, Fault)>>,
}

impl Content {
    fn fault(&self, at: At) -> Option<Fault> {
        let mut faults = self.faults.lock().unwrap();
        let position = faults.iter().position(|(a, left, _)| *a == at && *left > 0)?;
        faults[position].1 -= 1;
        Some(faults[position].2.clone())
    }
}

struct Hub {
    endpoint: Server,
    storage: Server,
    content: Arc<Content>,
    cache: TempDir,
}

fn sha256(bytes: &[u8]) -> String {
    digest(&SHA256, bytes).as_ref().iter().map(|b| format!("{b:02x}")).collect()
}

/// Bytes that differ everywhere, so that a piece in the wrong place is seen.
fn bytes(len: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 32) as u8
    };
    (0..len).map(|_| next()).collect()
}

fn is_large(name: &str) -> bool {
    name.ends_with(".safetensors") || name.contains(".npz") || name.ends_with(".model")
}

impl Hub {
    fn new(files: &[(&str, Vec<u8>)]) -> Self {
        let content = Arc::new(Content::default());
        *content.files.lock().unwrap() = files.iter().map(|(n, b)| ((*n).to_owned(), b.clone())).collect();
        for (revision, commit) in
            [("main", COMMIT), (COMMIT, COMMIT), ("v1.0", OLDER), ("refs/pr/1", OLDER), (OLDER, OLDER)]
        {
            content.revisions.lock().unwrap().insert(revision.into(), commit.into());
        }
        let shared = content.clone();
        let storage = Server::start(move |request| store(&shared, request));
        let (shared, storage_url) = (content.clone(), storage.url());
        let endpoint = Server::start(move |request| speak(&shared, &storage_url, request));
        Hub { endpoint, storage, content, cache: tempfile::tempdir().unwrap() }
    }

    /// A model of one weights file.
    fn single() -> Self {
        Hub::new(&[
            ("config.json", br#"{"model_type":"paligemma"}"#.to_vec()),
            ("preprocessor_config.json", b"{}".to_vec()),
            ("tokenizer.json", b"{\"a\":1}".to_vec()),
            ("README.md", b"not wanted".to_vec()),
            (WEIGHTS, bytes(SIZE, 1)),
            ("pytorch_model.bin", b"not wanted".to_vec()),
            ("onnx/model.safetensors", b"not wanted".to_vec()),
        ])
    }

    fn with(self, at: At, times: usize, fault: Fault) -> Self {
        self.content.faults.lock().unwrap().push((at, times, fault));
        self
    }

    fn options(&self) -> HubOptions {
        let mut options = HubOptions::new(self.cache.path());
        options.endpoint = self.endpoint.url();
        options.use_proxy = false;
        options.first_delay = Duration::from_millis(1);
        options.stall = Duration::from_secs(5);
        options
    }

    fn offline(&self) -> HubOptions {
        HubOptions { offline: true, ..self.options() }
    }

    fn file(&self, name: &str) -> Vec<u8> {
        self.content.files.lock().unwrap()[name].clone()
    }

    /// The requests for bytes at the storage: the offset each began at.
    fn offsets(&self) -> Vec<u64> {
        let start = |r: &Request| {
            let range = r.headers.get("range")?;
            range.strip_prefix("bytes=")?.strip_suffix('-')?.parse().ok()
        };
        self.storage.log().iter().filter(|r| r.method == "GET").map(|r| start(r).unwrap_or(0)).collect()
    }

    fn blobs(&self) -> PathBuf {
        self.cache.path().join("models--google--tiny-pt-224/blobs")
    }

    /// The weights have no name in the cache: neither as a blob nor in a snapshot nor under a ref.
    fn assert_not_committed(&self, name: &str) {
        let blob = self.blobs().join(sha256(&self.file(name)));
        assert!(!blob.exists(), "{name} has a blob");
        let repo = self.cache.path().join("models--google--tiny-pt-224");
        assert!(!repo.join("snapshots").join(COMMIT).join(name).exists(), "{name} has a link");
        assert!(!repo.join("refs/main").exists(), "main has a ref");
    }
}

/// The endpoint: the listing, the metadata, the small files; large ones are elsewhere.
fn speak(content: &Content, storage: &str, request: &Request) -> Reply {
    let not_found =
        |code: &str| Reply { status: 404, headers: vec![("X-Error-Code", code.into())], ..Reply::default() };
    if let Some(rest) = request.path.strip_prefix("/api/models/") {
        if let Some(Fault::Status(status, headers)) = content.fault(At::Listing) {
            return Reply { status, headers, ..Reply::default() };
        }
        let Some(revision) = rest.strip_prefix(REPO).and_then(|r| r.strip_prefix("/revision/")) else {
            return not_found("RepoNotFound");
        };
        let Some(commit) = content.revisions.lock().unwrap().get(&revision.replace("%2F", "/")).cloned()
        else {
            return not_found("RevisionNotFound");
        };
        let mut names: Vec<String> = content.files.lock().unwrap().keys().cloned().collect();
        names.extend(content.extra.lock().unwrap().iter().cloned());
        let siblings: Vec<_> = names.iter().map(|n| serde_json::json!({ "rfilename": n })).collect();
        let listing =
            serde_json::json!({ "id": REPO, "sha": commit, "siblings": siblings, "gated": "manual" });
        return Reply { status: 200, body: listing.to_string().into_bytes(), ..Reply::default() };
    }
    let parts: Vec<&str> = request.path.splitn(6, '/').collect();
    let [_, _, _, "resolve", commit, name] = parts[..] else { return not_found("EntryNotFound") };
    let Some(body) = content.files.lock().unwrap().get(name).cloned() else {
        return not_found("EntryNotFound");
    };
    let is_head = request.method == "HEAD";
    let mut headers = vec![("X-Repo-Commit", commit.to_owned())];
    let mut reply = if is_large(name) {
        headers.push(("X-Linked-Etag", format!("\"{}\"", sha256(&body))));
        headers.push(("X-Linked-Size", body.len().to_string()));
        headers.push(("ETag", "\"the-redirect-itself\"".into()));
        headers.push(("Location", format!("{storage}/{name}?Signature=secret")));
        Reply { status: 302, headers, body: b"Found".to_vec(), cut: None }
    } else {
        headers.push(("ETag", format!("W/\"{}\"", &sha256(&body)[..40])));
        headers.push(("Content-Length", body.len().to_string()));
        Reply { status: 200, headers, body, cut: None }
    };
    match content.fault(if is_head { At::Head } else { At::Small }) {
        Some(Fault::Status(status, headers)) => Reply { status, headers, ..Reply::default() },
        Some(Fault::Headers(other)) => {
            reply.headers.retain(|(name, _)| !other.iter().any(|(n, _)| n == name));
            reply.headers.extend(other);
            reply
        }
        _ => reply,
    }
}

/// The storage: bytes, in ranges if asked for.
fn store(content: &Content, request: &Request) -> Reply {
    let name = request.path.trim_start_matches('/').split('?').next().unwrap_or_default().to_owned();
    let Some(mut body) = content.files.lock().unwrap().get(&name).cloned() else {
        return Reply { status: 404, ..Reply::default() };
    };
    let fault = content.fault(At::Storage);
    if let Some(Fault::Status(status, headers)) = fault {
        return Reply { status, headers, ..Reply::default() };
    }
    if let Some(Fault::OtherBytes(other)) = &fault {
        body = other.clone();
    }
    let size = body.len();
    let start = request
        .headers
        .get("range")
        .filter(|_| !matches!(fault, Some(Fault::NoRange | Fault::NoRangeCut(_))));
    let start: Option<usize> =
        start.map(|r| r.trim_start_matches("bytes=").trim_end_matches('-').parse().unwrap());
    let mut reply = match start {
        None => Reply { status: 200, body, ..Reply::default() },
        Some(start) if start >= size => {
            return Reply {
                status: 416,
                headers: vec![("Content-Range", format!("bytes */{size}"))],
                ..Reply::default()
            };
        }
        Some(start) => Reply {
            status: 206,
            headers: vec![("Content-Range", format!("bytes {start}-{}/{size}", size - 1))],
            body: body[start..].to_vec(),
            cut: None,
        },
    };
    match fault {
        Some(Fault::Cut(cut) | Fault::NoRangeCut(cut)) => reply.cut = Some(cut),
        Some(Fault::Headers(other)) => {
            reply.headers.retain(|(name, _)| !other.iter().any(|(n, _)| n == name));
            reply.headers.extend(other);
        }
        _ => {}
    }
    reply
}

// ---- one door ----------------------------------------------------------------------------------------------

fn id(text: &str) -> HubId {
    HubId::parse(text).unwrap()
}

fn pull(hub: &Hub, name: &str) -> Result<Snapshot, Error> {
    hub::pull(&id(name), &hub.options(), &mut |_| ControlFlow::Continue(()))
}

fn snapshot(name: &str, options: &HubOptions) -> Result<Snapshot, Error> {
    hub::snapshot(&id(name), options, &mut |_| ControlFlow::Continue(()))
}

/// The error has this kind and says all of these words.
#[track_caller]
fn check(error: &Error, kind: Kind, words: &[&str]) {
    let text = error.to_string();
    assert_eq!(error.kind(), kind, "{text}");
    for word in words {
        assert!(text.contains(word), "'{word}' is not in:\n{text}");
    }
}

fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        fs::read_dir(folder).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

// ---- the promises ------------------------------------------------------------------------------------------

#[test]
fn a_fresh_download_has_the_layout_that_python_reads() {
    let hub = Hub::single();
    let mut seen = Vec::new();
    let snapshot = hub::pull(&id(REPO), &hub.options(), &mut |p| {
        if let Progress::Bytes { done, total, .. } = p {
            seen.push((done, total));
        }
        ControlFlow::Continue(())
    })
    .unwrap();
    assert_eq!(snapshot.commit, COMMIT);
    let repo = hub.cache.path().join("models--google--tiny-pt-224");
    assert_eq!(snapshot.path, repo.join("snapshots").join(COMMIT));
    let wanted = ["config.json", WEIGHTS, "preprocessor_config.json", "tokenizer.json"];
    assert_eq!(names(&snapshot.path), wanted);
    for name in wanted {
        assert_eq!(fs::read(snapshot.path.join(name)).unwrap(), hub.file(name), "{name}");
    }
    assert_eq!(fs::read_to_string(repo.join("refs/main")).unwrap(), COMMIT);
    #[cfg(unix)]
    assert_eq!(
        fs::read_link(snapshot.path.join(WEIGHTS)).unwrap(),
        Path::new("../../blobs").join(sha256(&hub.file(WEIGHTS)))
    );
    assert!(names(&hub.blobs()).iter().all(|n| !n.contains("incomplete")));
    assert_eq!(names(&hub.blobs()).len(), 4);
    assert!(hub.cache.path().join(".locks/models--google--tiny-pt-224").is_dir());
    // Progress goes up to the whole, and the whole is all wanted files.
    let total: usize = wanted.iter().map(|n| hub.file(n).len()).sum();
    assert_eq!(seen.last(), Some(&(total as u64, total as u64)));
    assert!(seen.windows(2).all(|w| w[0].0 <= w[1].0), "{seen:?}");
}

#[test]
fn a_cached_model_is_used_without_the_network() {
    let hub = Hub::single();
    snapshot(REPO, &hub.options()).unwrap();
    let before = (hub.endpoint.log().len(), hub.storage.log().len());
    for options in [hub.options(), hub.offline()] {
        for name in [REPO.to_owned(), format!("{REPO}@main"), format!("hf://{REPO}@{COMMIT}")] {
            assert_eq!(snapshot(&name, &options).unwrap().commit, COMMIT, "{name}");
        }
    }
    assert_eq!((hub.endpoint.log().len(), hub.storage.log().len()), before);
    // A pull asks, and fetches nothing that is here.
    pull(&hub, REPO).unwrap();
    assert_eq!(hub.storage.log().len(), before.1);
    assert!(hub.endpoint.log()[before.0..].iter().all(|r| r.method == "HEAD" || r.path.starts_with("/api/")));
}

#[test]
fn a_cut_download_goes_on_where_it_ended() {
    for i in 0..20 {
        let cut = (SIZE - 1) * i / 19;
        // In the same call.
        let hub = Hub::single().with(At::Storage, 1, Fault::Cut(cut));
        let snapshot = pull(&hub, REPO).unwrap();
        assert_eq!(fs::read(snapshot.path.join(WEIGHTS)).unwrap(), hub.file(WEIGHTS), "cut at {cut}");
        assert_eq!(hub.offsets(), [0, cut as u64], "cut at {cut}");
        // In a later one.
        let hub = Hub::single().with(At::Storage, 1, Fault::Cut(cut));
        let once = HubOptions { attempts: 1, ..hub.options() };
        let error = hub::pull(&id(REPO), &once, &mut |_| ControlFlow::Continue(())).unwrap_err();
        check(&error, Kind::Network, &[WEIGHTS, &format!("byte {cut} of {SIZE}")]);
        hub.assert_not_committed(WEIGHTS);
        let snapshot = pull(&hub, REPO).unwrap();
        assert_eq!(fs::read(snapshot.path.join(WEIGHTS)).unwrap(), hub.file(WEIGHTS), "cut at {cut}");
        assert_eq!(hub.offsets(), [0, cut as u64], "cut at {cut}");
    }
}

#[test]
fn a_download_cut_again_and_again_arrives_while_each_piece_is_new() {
    let hub = Hub::single().with(At::Storage, 30, Fault::Cut(SIZE / 25));
    let snapshot = pull(&hub, REPO).unwrap();
    assert_eq!(fs::read(snapshot.path.join(WEIGHTS)).unwrap(), hub.file(WEIGHTS));
    let offsets = hub.offsets();
    assert!(offsets.len() == 26 || offsets.len() == 25, "{offsets:?}");
    assert!(offsets.windows(2).all(|w| w[0] < w[1]), "{offsets:?}");
}

#[test]
fn a_server_that_never_gives_a_byte_more_is_given_up() {
    let hub = Hub::single().with(At::Storage, usize::MAX, Fault::Cut(0));
    check(&pull(&hub, REPO).unwrap_err(), Kind::Network, &["byte 0 of", "5 times"]);
    assert_eq!(hub.offsets().len(), 5);
    // It starts again each time and breaks at the same place: no progress either.
    let hub = Hub::single().with(At::Storage, usize::MAX, Fault::NoRangeCut(1000));
    check(&pull(&hub, REPO).unwrap_err(), Kind::Network, &["byte 1000 of", "5 times"]);
    assert_eq!(hub.offsets(), [0, 1000, 1000, 1000, 1000]);
    // It refuses what it was just willing to give.
    let hub = Hub::single().with(At::Storage, 1, Fault::Cut(1000));
    let hub = hub.with(At::Storage, usize::MAX, Fault::Status(416, vec![]));
    check(&pull(&hub, REPO).unwrap_err(), Kind::Network, &["416"]);
    hub.assert_not_committed(WEIGHTS);
}

#[test]
fn a_server_without_ranges_is_served_from_the_start() {
    let hub = Hub::single().with(At::Storage, 1, Fault::Cut(5000)).with(At::Storage, 1, Fault::NoRange);
    let snapshot = pull(&hub, REPO).unwrap();
    assert_eq!(fs::read(snapshot.path.join(WEIGHTS)).unwrap(), hub.file(WEIGHTS));
}

#[test]
fn a_refused_range_starts_again_from_zero() {
    let hub =
        Hub::single().with(At::Storage, 1, Fault::Cut(5000)).with(At::Storage, 1, Fault::Status(416, vec![]));
    let snapshot = pull(&hub, REPO).unwrap();
    assert_eq!(fs::read(snapshot.path.join(WEIGHTS)).unwrap(), hub.file(WEIGHTS));
    assert_eq!(hub.offsets(), [0, 5000, 0]);
}

#[test]
fn a_range_from_another_place_is_refused() {
    let wrong = vec![("Content-Range", format!("bytes 4000-{}/{SIZE}", SIZE - 1))];
    let hub =
        Hub::single().with(At::Storage, 1, Fault::Cut(5000)).with(At::Storage, 1, Fault::Headers(wrong));
    check(&pull(&hub, REPO).unwrap_err(), Kind::Network, &["wrong place", "bytes 5000-"]);
    hub.assert_not_committed(WEIGHTS);
}

#[test]
fn wrong_bytes_and_wrong_lengths_get_no_name() {
    let wrong = bytes(SIZE, 2);
    let cases: Vec<(&str, At, Fault, Vec<&str>)> = vec![
        ("other bytes", At::Storage, Fault::OtherBytes(wrong.clone()), vec!["SHA-256", "as the Hub said"]),
        (
            "shorter",
            At::Storage,
            Fault::OtherBytes(wrong[1..].to_vec()),
            vec!["299999 bytes", "300000 bytes"],
        ),
        ("longer", At::Storage, Fault::OtherBytes(bytes(SIZE + 1, 2)), vec!["300001 bytes"]),
        (
            "compressed",
            At::Storage,
            Fault::Headers(vec![("Content-Encoding", "gzip".into())]),
            vec!["compressed"],
        ),
    ];
    for (what, at, fault, words) in cases {
        let hub = Hub::single().with(at, 1, fault);
        let error = pull(&hub, REPO).expect_err(what);
        check(&error, Kind::Network, &words);
        check(&error, Kind::Network, &[WEIGHTS]);
        hub.assert_not_committed(WEIGHTS);
        // The damage does not stay: the next pull is right.
        let snapshot = pull(&hub, REPO).expect(what);
        assert_eq!(fs::read(snapshot.path.join(WEIGHTS)).unwrap(), hub.file(WEIGHTS), "{what}");
    }
}

#[test]
fn damaged_leftovers_are_fetched_anew() {
    for leftover in [vec![7; 1000], vec![7; SIZE], vec![7; SIZE + 5]] {
        let hub = Hub::single();
        let partial = hub.blobs().join(format!("{}.incomplete", sha256(&hub.file(WEIGHTS))));
        fs::create_dir_all(hub.blobs()).unwrap();
        fs::write(&partial, &leftover).unwrap();
        let snapshot = pull(&hub, REPO).unwrap();
        assert_eq!(fs::read(snapshot.path.join(WEIGHTS)).unwrap(), hub.file(WEIGHTS), "{}", leftover.len());
        assert!(!partial.exists());
    }
    // A blob that lost its end is no blob.
    let hub = Hub::single();
    let snapshot = pull(&hub, REPO).unwrap();
    let blob = hub.blobs().join(sha256(&hub.file(WEIGHTS)));
    fs::write(&blob, &hub.file(WEIGHTS)[..10]).unwrap();
    pull(&hub, REPO).unwrap();
    assert_eq!(fs::read(snapshot.path.join(WEIGHTS)).unwrap(), hub.file(WEIGHTS));
}

#[test]
fn passing_trouble_is_waited_out_and_lasting_trouble_named() {
    for status in [429, 500, 503] {
        for at in [At::Listing, At::Head, At::Small, At::Storage] {
            let hub = Hub::single().with(at, 3, Fault::Status(status, vec![]));
            let mut retries = 0;
            hub::pull(&id(REPO), &hub.options(), &mut |p| {
                retries += usize::from(matches!(p, Progress::Retrying { .. }));
                ControlFlow::Continue(())
            })
            .unwrap_or_else(|e| panic!("{status} {at:?}: {e}"));
            assert_eq!(retries, 3, "{status} {at:?}");
            let hub = Hub::single().with(at, usize::MAX, Fault::Status(status, vec![]));
            let error = pull(&hub, REPO).unwrap_err();
            check(&error, Kind::Network, &[&status.to_string(), "5 times in a row", "try again later"]);
        }
    }
}

#[test]
fn the_pauses_double_and_the_server_may_ask_for_one() {
    let hub = Hub::single().with(At::Listing, usize::MAX, Fault::Status(503, vec![]));
    let mut waits = Vec::new();
    let mut note = |p: Progress| {
        if let Progress::Retrying { wait, .. } = p {
            waits.push(wait.as_millis());
        }
        ControlFlow::Continue(())
    };
    hub::pull(&id(REPO), &hub.options(), &mut note).unwrap_err();
    assert_eq!(waits, [1, 2, 4, 8]);
    let after = Fault::Status(429, vec![("Retry-After", "1".into())]);
    let hub = Hub::single().with(At::Listing, 1, after);
    let start = Instant::now();
    pull(&hub, REPO).unwrap();
    assert!(start.elapsed() >= Duration::from_secs(1));
}

#[test]
fn a_gated_model_says_the_next_step() {
    let code = |code: &str| vec![("X-Error-Code", code.to_owned())];
    for (at, status, headers) in [
        (At::Head, 401, code("GatedRepo")),
        (At::Head, 403, code("GatedRepo")),
        (At::Listing, 401, vec![]),
        (At::Listing, 403, vec![]),
    ] {
        let hub = Hub::single().with(at, usize::MAX, Fault::Status(status, headers));
        let error = pull(&hub, REPO).unwrap_err();
        assert_eq!(error.kind(), Kind::Network);
        let text = error.to_string();
        let expected = "google/tiny-pt-224 is gated: the licence must be accepted once\n  \
             https://huggingface.co/google/tiny-pt-224   (click \"Acknowledge license\")\n\n\
             hint: then run `hf auth login`, or set HF_TOKEN; or give a folder: paligemma run ./model cat.jpg";
        assert!(text.starts_with(expected), "{text}");
        // A refusal is no passing trouble.
        assert_eq!(hub.endpoint.log().len(), if at == At::Listing { 1 } else { 2 });
    }
}

#[test]
fn a_token_that_is_not_accepted_is_named_by_its_source_alone() {
    let refused = vec![("X-Error-Message", "Invalid credentials in Authorization header".to_owned())];
    let hub = Hub::single().with(At::Listing, 1, Fault::Status(401, refused));
    let mut options = hub.options();
    options.token = Token::new("hf_secret", "HF_TOKEN").unwrap();
    let error = snapshot(REPO, &options).unwrap_err();
    check(&error, Kind::Network, &["does not accept the token from HF_TOKEN", "hf auth login"]);
    assert!(!format!("{error:?}{error}").contains("hf_secret"));
}

#[test]
fn what_the_hub_does_not_have_is_named() {
    let hub = Hub::single();
    for (name, words) in [
        ("google/other", &["no model google/other"][..]),
        ("google/paligemma-3b-pt-225", &["no model", "did you mean google/paligemma-3b-pt-224?"]),
        ("google/tiny-pt-224@v9", &["no revision 'v9'"]),
        ("google/tiny-pt-224/x.npz", &["no weights"]),
    ] {
        let error = pull(&hub, name).unwrap_err();
        let kind = if name.ends_with(".npz") { Kind::Model } else { Kind::Network };
        check(&error, kind, words);
    }
    assert!(!hub.cache.path().join("models--google--other").exists());
    let bare = Hub::single().with(At::Listing, 1, Fault::Status(404, vec![]));
    check(&pull(&bare, REPO).unwrap_err(), Kind::Network, &["no model", "no revision 'main'"]);
    let none = Hub::new(&[("config.json", b"{}".to_vec()), ("pytorch_model.bin", vec![0])]);
    check(&pull(&none, REPO).unwrap_err(), Kind::Model, &["no weights", "pytorch_model.bin"]);
    // Nobody there.
    let mut options = none.options();
    options.endpoint = "http://127.0.0.1:1".into();
    check(&snapshot(REPO, &options).unwrap_err(), Kind::Network, &["cannot reach http://127.0.0.1:1"]);
    options.endpoint = "nonsense".into();
    check(&snapshot(REPO, &options).unwrap_err(), Kind::Network, &["HF_ENDPOINT"]);
}

#[test]
fn the_token_stays_with_the_endpoint() {
    let hub = Hub::single();
    let mut options = hub.options();
    options.token = Token::new("hf_secret", "HF_TOKEN").unwrap();
    snapshot(REPO, &options).unwrap();
    let endpoint = hub.endpoint.log();
    assert!(!endpoint.is_empty());
    for request in endpoint {
        assert_eq!(request.headers.get("authorization").map(String::as_str), Some("Bearer hf_secret"));
    }
    let storage = hub.storage.log();
    assert_eq!(storage.len(), 1);
    for request in storage {
        assert!(!format!("{request:?}").contains("hf_secret"), "{request:?}");
        assert!(!request.headers.contains_key("authorization"));
        // The path of the redirect came through, its signature too.
        assert_eq!(request.path, format!("/{WEIGHTS}?Signature=secret"));
    }
    // Without a token none is sent, and no cookie or other mark.
    let hub = Hub::single();
    pull(&hub, REPO).unwrap();
    for request in hub.endpoint.log() {
        let names: Vec<&str> = request.headers.keys().map(String::as_str).collect();
        assert!(
            names.iter().all(|n| ["host", "user-agent", "accept", "accept-encoding"].contains(n)),
            "{names:?}"
        );
    }
}

#[test]
fn a_redirect_within_the_endpoint_keeps_the_token_and_a_loop_ends() {
    // The first HEAD, that of config.json, points back to the endpoint.
    let location = Fault::Status(307, vec![("Location", format!("/{REPO}/resolve/{COMMIT}/config.json"))]);
    let hub = Hub::single().with(At::Head, 1, location.clone());
    let mut options = hub.options();
    options.token = Token::new("hf_secret", "HF_TOKEN").unwrap();
    snapshot(REPO, &options).unwrap();
    let heads: Vec<_> = hub.endpoint.log().into_iter().filter(|r| r.path.ends_with("/config.json")).collect();
    assert_eq!(heads.len(), 3);
    assert!(heads.iter().all(|r| r.headers["authorization"] == "Bearer hf_secret"));
    let looping = Hub::single().with(At::Head, usize::MAX, location);
    check(&pull(&looping, REPO).unwrap_err(), Kind::Network, &["redirects"]);
    for bad in ["file:///etc/passwd", "../x", "http://", "gopher://x/"] {
        let hub = Hub::single().with(At::Small, 1, Fault::Status(302, vec![("Location", bad.into())]));
        assert_eq!(pull(&hub, REPO).expect_err(bad).kind(), Kind::Network, "{bad}");
    }
}

#[test]
fn names_from_the_server_cannot_leave_the_cache() {
    for bad in ["../x.npz", "/etc/passwd", "a/../../x", "..", "a\\..\\x", "C:\\x", "a//b", "x\0y", ""] {
        let hub = Hub::single();
        hub.content.extra.lock().unwrap().push(bad.to_owned());
        check(&pull(&hub, REPO).expect_err(bad), Kind::Network, &["lists a file"]);
        assert!(!hub.blobs().exists(), "{bad:?}");
    }
    for (header, bad) in
        [("X-Linked-Etag", "../../x"), ("X-Linked-Etag", "\"/etc/x\""), ("X-Linked-Etag", ".")]
    {
        let hub = Hub::single().with(At::Head, usize::MAX, Fault::Headers(vec![(header, bad.into())]));
        check(&pull(&hub, REPO).expect_err(bad), Kind::Network, &["ETag"]);
    }
    for bad in ["../../../x", "main", ""] {
        let hub = Hub::single();
        hub.content.revisions.lock().unwrap().insert("main".into(), bad.into());
        check(&pull(&hub, REPO).expect_err(bad), Kind::Network, &["commit"]);
    }
    let index = br#"{"weight_map":{"a":"../x.safetensors"}}"#.to_vec();
    let hub = Hub::new(&[("config.json", b"{}".to_vec()), ("model.safetensors.index.json", index)]);
    check(&pull(&hub, REPO).unwrap_err(), Kind::Model, &["../x.safetensors"]);
}

#[test]
fn a_sharded_model_is_the_shards_its_index_names() {
    let index = br#"{"metadata":{},"weight_map":{"a":"m-1.safetensors","b":"m-2.safetensors","c":"m-1.safetensors"}}"#;
    let hub = Hub::new(&[
        ("config.json", b"{}".to_vec()),
        ("processor_config.json", b"{}".to_vec()),
        ("tokenizer.json", b"{}".to_vec()),
        ("model.safetensors.index.json", index.to_vec()),
        ("m-1.safetensors", bytes(1000, 1)),
        ("m-2.safetensors", bytes(1000, 2)),
        ("m-3.safetensors", bytes(1000, 3)),
    ]);
    let found = pull(&hub, REPO).unwrap();
    let expected = [
        "config.json",
        "m-1.safetensors",
        "m-2.safetensors",
        "model.safetensors.index.json",
        "processor_config.json",
        "tokenizer.json",
    ];
    assert_eq!(names(&found.path), expected);
    assert_eq!(snapshot(REPO, &hub.offline()).unwrap(), found);
    // A shard that went away is fetched again, and offline missed.
    fs::remove_file(hub.blobs().join(sha256(&hub.file("m-2.safetensors")))).unwrap();
    check(&snapshot(REPO, &hub.offline()).unwrap_err(), Kind::Network, &["not in the cache"]);
    assert_eq!(snapshot(REPO, &hub.options()).unwrap(), found);
    hub.content.files.lock().unwrap().remove("m-2.safetensors");
    hub.content.revisions.lock().unwrap().insert("main".into(), OLDER.into());
    check(&pull(&hub, REPO).unwrap_err(), Kind::Model, &["m-2.safetensors"]);
}

#[test]
fn an_npz_repository_is_located_as_its_npz() {
    let find = |hub: &Hub, name: &str, options: &HubOptions| {
        let _ = hub;
        locate(name, options, &mut |_| ControlFlow::Continue(()))
    };
    let hub = Hub::new(&[
        ("pt_224.npz", bytes(500, 1)),
        ("paligemma_tokenizer.model", bytes(50, 2)),
        ("x.md", vec![1]),
    ]);
    let found = find(&hub, REPO, &hub.options()).unwrap();
    assert!(found.path.ends_with(format!("snapshots/{COMMIT}/pt_224.npz")), "{found}");
    assert!(found.path.with_file_name("paligemma_tokenizer.model").is_file());
    assert!(matches!(&found.source, Source::Hub { commit, .. } if commit == COMMIT));
    assert_eq!(find(&hub, REPO, &hub.offline()).unwrap(), found);

    let parts: Vec<(String, Vec<u8>)> = (0..11).map(|i| (format!("a.npz.part{i}"), bytes(100, i))).collect();
    let hub = Hub::new(&parts.iter().map(|(n, b)| (n.as_str(), b.clone())).collect::<Vec<_>>());
    let found = find(&hub, REPO, &hub.options()).unwrap();
    assert!(found.path.ends_with("a.npz.part0"), "{found}");
    let joined: Vec<u8> = found.parts.iter().flat_map(|p| fs::read(p).unwrap()).collect();
    assert_eq!(joined, parts.iter().flat_map(|(_, b)| b.clone()).collect::<Vec<_>>());

    let hub = Hub::new(&[("a.npz", bytes(9, 1)), ("b.npz", bytes(9, 2))]);
    let error = find(&hub, REPO, &hub.options()).unwrap_err();
    check(&error, Kind::Usage, &["several npz", &format!("{REPO}/a.npz, {REPO}/b.npz")]);
    let one = Hub::new(&[("a.npz", bytes(9, 1)), ("b.npz", bytes(9, 2))]);
    let found = find(&one, &format!("{REPO}@main/b.npz"), &one.options()).unwrap();
    assert!(found.path.ends_with("b.npz"));
    assert_eq!(names(found.path.parent().unwrap()), ["b.npz"]);
}

#[test]
fn a_hub_id_is_located_as_its_folder() {
    let hub = Hub::single();
    let found =
        locate(&format!("hf://{REPO}@v1.0"), &hub.options(), &mut |_| ControlFlow::Continue(())).unwrap();
    assert!(found.path.ends_with(format!("snapshots/{OLDER}")));
    assert!(
        found.to_string().starts_with(&format!("Hub model {REPO}@v1.0 (commit 89abcdef0123)")),
        "{found}"
    );
}

#[test]
fn revisions_are_branches_tags_and_commits() {
    let hub = Hub::single();
    for (revision, commit) in [("main", COMMIT), ("v1.0", OLDER), ("refs/pr/1", OLDER), (OLDER, OLDER)] {
        let found = pull(&hub, &format!("{REPO}@{revision}")).unwrap();
        assert_eq!(found.commit, commit, "{revision}");
        assert_eq!(snapshot(&format!("{REPO}@{revision}"), &hub.offline()).unwrap(), found, "{revision}");
    }
    let refs = hub.cache.path().join("models--google--tiny-pt-224/refs");
    assert_eq!(fs::read_to_string(refs.join("refs/pr/1")).unwrap(), OLDER);
    assert!(!refs.join(OLDER).exists());
    // The bytes are the same in both commits: they came once.
    assert_eq!(hub.storage.log().len(), 1);
    // A branch that moved is seen by a pull, not by a run.
    hub.content.revisions.lock().unwrap().insert("main".into(), OLDER.into());
    assert_eq!(snapshot(REPO, &hub.options()).unwrap().commit, COMMIT);
    assert_eq!(pull(&hub, REPO).unwrap().commit, OLDER);
    assert_eq!(snapshot(REPO, &hub.offline()).unwrap().commit, OLDER);
}

#[test]
fn offline_says_no_word_and_names_the_way_out() {
    let hub = Hub::single();
    let error = snapshot(REPO, &hub.offline()).unwrap_err();
    check(
        &error,
        Kind::Network,
        &["google/tiny-pt-224 is not in the cache", "HF_HUB_OFFLINE", "paligemma pull"],
    );
    assert!(hub.endpoint.log().is_empty());
    assert!(names(hub.cache.path()).is_empty(), "nothing is written for a question");
}

#[test]
fn a_model_that_python_fetched_is_found_without_the_network() {
    // As huggingface_hub leaves it: no trailing line break in the ref, relative links, a file of no use to us.
    let hub = Hub::single();
    let repo = hub.cache.path().join("models--google--tiny-pt-224");
    let snapshot_folder = repo.join("snapshots").join(COMMIT);
    for folder in [repo.join("blobs"), repo.join("refs"), snapshot_folder.clone()] {
        fs::create_dir_all(folder).unwrap();
    }
    fs::write(repo.join("refs/main"), COMMIT).unwrap();
    let put = |name: &str| {
        let etag = sha256(name.as_bytes());
        fs::write(repo.join("blobs").join(&etag), hub.file(name)).unwrap();
        #[cfg(unix)]
        std::os::unix::fs::symlink(format!("../../blobs/{etag}"), snapshot_folder.join(name)).unwrap();
        #[cfg(not(unix))]
        fs::write(snapshot_folder.join(name), hub.file(name)).unwrap();
    };
    // Configuration and tokenizer alone are no model.
    for name in ["config.json", "tokenizer.json", "README.md"] {
        put(name);
    }
    snapshot(REPO, &hub.offline()).unwrap_err();
    let tokenizer = HubOptions { want: Want::Tokenizer, ..hub.offline() };
    assert_eq!(snapshot(REPO, &tokenizer).unwrap().path, snapshot_folder);
    // With the weights it runs, offline and where the Hub cannot be reached; else the small file is asked for.
    put(WEIGHTS);
    assert_eq!(snapshot(REPO, &hub.offline()).unwrap().path, snapshot_folder);
    let unreachable = HubOptions { endpoint: "http://127.0.0.1:1".into(), ..hub.options() };
    assert_eq!(snapshot(REPO, &unreachable).unwrap().path, snapshot_folder);
    assert!(hub.endpoint.log().is_empty());
    put("preprocessor_config.json");
    assert_eq!(snapshot(REPO, &hub.options()).unwrap().path, snapshot_folder);
    assert!(hub.endpoint.log().is_empty());
}

#[test]
fn the_tokenizer_alone_is_a_small_download() {
    let hub = Hub::single();
    let options = HubOptions { want: Want::Tokenizer, ..hub.options() };
    let found = snapshot(REPO, &options).unwrap();
    assert_eq!(names(&found.path), ["config.json", "preprocessor_config.json", "tokenizer.json"]);
    assert!(hub.storage.log().is_empty());
    // It is no whole model, and a run knows that.
    snapshot(REPO, &hub.options()).unwrap();
    assert_eq!(hub.storage.log().len(), 1);
}

#[test]
fn a_disk_without_room_is_said_before_the_download() {
    let huge = Fault::Headers(vec![("X-Linked-Size", (1u64 << 60).to_string())]);
    let hub = Hub::single().with(At::Head, usize::MAX, huge);
    check(
        &pull(&hub, REPO).unwrap_err(),
        Kind::Resource,
        &["needs 4294967296.0 GiB", "GiB free", "HF_HUB_CACHE"],
    );
    assert!(hub.storage.log().is_empty());
    let absurd = Fault::Headers(vec![("X-Linked-Size", u64::MAX.to_string())]);
    let hub = Hub::single().with(At::Head, usize::MAX, absurd);
    check(&pull(&hub, REPO).unwrap_err(), Kind::Network, &["beyond all measure"]);
    let unsaid = Fault::Headers(vec![("X-Linked-Size", "-1".into()), ("Content-Length", "x".into())]);
    let hub = Hub::single().with(At::Head, usize::MAX, unsaid);
    assert_eq!(pull(&hub, REPO).unwrap_err().kind(), Kind::Network);
}

#[test]
fn a_stopped_download_is_kept() {
    let hub = Hub::single();
    let error = hub::pull(&id(REPO), &hub.options(), &mut |p| match p {
        Progress::Bytes { file: WEIGHTS, .. } => ControlFlow::Break(()),
        _ => ControlFlow::Continue(()),
    })
    .unwrap_err();
    check(&error, Kind::Cancelled, &["stopped"]);
    hub.assert_not_committed(WEIGHTS);
    pull(&hub, REPO).unwrap();
    let offsets = hub.offsets();
    assert!(offsets.len() == 2 && offsets[1] > 0, "{offsets:?}");
}

#[test]
fn a_silent_server_is_given_up() {
    // It takes the request and says nothing: the listener's queue holds the connection open.
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let hub = Hub::single();
    let options = HubOptions {
        endpoint: format!("http://{}", listener.local_addr().unwrap()),
        stall: Duration::from_millis(100),
        attempts: 2,
        ..hub.options()
    };
    let start = Instant::now();
    check(&snapshot(REPO, &options).unwrap_err(), Kind::Network, &["stopped answering", "2 times"]);
    assert!(start.elapsed() < Duration::from_secs(5));
}

#[test]
fn no_network_and_no_trust_are_said_at_once() {
    let hub = Hub::single();
    // A server that speaks no TLS.
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let plain = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let _ = stream.read(&mut [0; 1000]);
        let _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n");
    });
    for (endpoint, words) in [
        (format!("https://127.0.0.1:{port}"), ["no secure connection", "HF_ENDPOINT"]),
        // A name that no resolver knows (RFC 6761).
        ("http://hub.invalid".to_owned(), ["cannot reach http://hub.invalid", "paligemma ls"]),
        ("http://127.0.0.1:1".to_owned(), ["cannot reach http://127.0.0.1:1", "refused"]),
    ] {
        let options = HubOptions { endpoint, first_delay: Duration::from_secs(60), ..hub.options() };
        check(&snapshot(REPO, &options).unwrap_err(), Kind::Network, &words);
    }
    plain.join().unwrap();
}

#[test]
fn eight_threads_make_one_file() {
    let hub = Hub::single();
    std::thread::scope(|scope| {
        let pulls: Vec<_> = (0..8).map(|_| scope.spawn(|| pull(&hub, REPO).unwrap())).collect();
        for pull in pulls {
            let snapshot = pull.join().unwrap();
            assert_eq!(fs::read(snapshot.path.join(WEIGHTS)).unwrap(), hub.file(WEIGHTS));
        }
    });
    assert_eq!(hub.offsets(), [0]);
    assert_eq!(names(&hub.blobs()).len(), 4);
}

#[test]
fn eight_processes_make_one_file() {
    let hub = Hub::single();
    let children: Vec<_> = (0..8)
        .map(|_| {
            Command::new(std::env::current_exe().unwrap())
                .args(["--exact", "hub::one_process_of_eight", "--ignored", "--test-threads=1"])
                .env("PALIGEMMA_TEST_CACHE", hub.cache.path())
                .env("PALIGEMMA_TEST_ENDPOINT", hub.endpoint.url())
                .stdout(std::process::Stdio::null())
                .spawn()
                .unwrap()
        })
        .collect();
    for mut child in children {
        assert!(child.wait().unwrap().success());
    }
    let snapshot = snapshot(REPO, &hub.offline()).unwrap();
    assert_eq!(fs::read(snapshot.path.join(WEIGHTS)).unwrap(), hub.file(WEIGHTS));
    assert_eq!(hub.offsets(), [0]);
    assert_eq!(names(&hub.blobs()).len(), 4);
}

#[test]
#[ignore = "the child of eight_processes_make_one_file"]
fn one_process_of_eight() {
    let var = |name: &str| std::env::var_os(name).and_then(|v| v.into_string().ok());
    let (Some(cache), Some(endpoint)) = (var("PALIGEMMA_TEST_CACHE"), var("PALIGEMMA_TEST_ENDPOINT")) else {
        return;
    };
    let mut options = HubOptions::new(cache);
    options.endpoint = endpoint;
    options.use_proxy = false;
    let snapshot = hub::pull(&id(REPO), &options, &mut |_| ControlFlow::Continue(())).unwrap();
    assert_eq!(fs::read(snapshot.path.join(WEIGHTS)).unwrap(), bytes(SIZE, 1));
}

#[test]
fn the_cache_is_listed_and_cleared() {
    let hub = Hub::single();
    let options = hub.options();
    assert_eq!(cached_models(&options).unwrap(), []);
    pull(&hub, REPO).unwrap();
    hub.content
        .files
        .lock()
        .unwrap()
        .insert("config.json".into(), br#"{"model_type":"paligemma2"}"#.to_vec());
    pull(&hub, &format!("{REPO}@v1.0")).unwrap();
    for foreign in ["models--a--b/refs", "datasets--c--d", "models--x", "models--..--y/snapshots", ".locks"] {
        fs::create_dir_all(hub.cache.path().join(foreign)).unwrap();
    }
    let models = cached_models(&options).unwrap();
    let view: Vec<_> =
        models.iter().map(|m| (m.id.as_str(), m.commit.as_str(), m.revisions.clone())).collect();
    assert_eq!(view, [(REPO, COMMIT, vec!["main".to_owned()]), (REPO, OLDER, vec!["v1.0".to_owned()])]);
    assert!(models.iter().all(|m| m.is_complete && m.is_paligemma));
    let wanted = ["config.json", "preprocessor_config.json", "tokenizer.json", WEIGHTS];
    assert_eq!(models[1].size_bytes, wanted.iter().map(|n| hub.file(n).len() as u64).sum::<u64>());

    // Another process is at it.
    let locks = hub.cache.path().join(".locks/models--google--tiny-pt-224");
    let lock = fs::File::open(locks.join(&names(&locks)[0])).unwrap();
    lock.lock().unwrap();
    check(&remove(&options, REPO, None).unwrap_err(), Kind::Usage, &["being downloaded"]);
    drop(lock);

    // One revision goes: what the other needs stays.
    let Removed { commits, freed_bytes } = remove(&options, REPO, Some("v1.0")).unwrap();
    assert_eq!((commits, freed_bytes), (vec![OLDER.to_owned()], hub.file("config.json").len() as u64));
    assert_eq!(snapshot(REPO, &hub.offline()).unwrap().commit, COMMIT);
    assert_eq!(fs::read(models[0].path.join(WEIGHTS)).unwrap(), hub.file(WEIGHTS));
    check(&remove(&options, REPO, Some("v1.0")).unwrap_err(), Kind::Usage, &["not in the cache"]);
    // All goes.
    assert!(remove(&options, REPO, None).unwrap().freed_bytes > SIZE as u64);
    assert!(!hub.cache.path().join("models--google--tiny-pt-224").exists());
    for bad in ["../x", "google/..", "a", ""] {
        assert_eq!(remove(&options, bad, None).unwrap_err().kind(), Kind::Usage, "{bad}");
    }
    assert_eq!(remove(&options, REPO, Some("../../x")).unwrap_err().kind(), Kind::Usage);
}
