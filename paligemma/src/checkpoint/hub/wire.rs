//! What is said to the Hub and what it answers: requests, redirects, retries, refusals.
//!
//! Redirects are followed here and not by the HTTP library, because the token belongs to the endpoint
//! alone: it goes with a request only when scheme, host and port are the endpoint's.

use std::io::ErrorKind;
use std::time::Duration;

use ureq::http::{HeaderMap, Response, StatusCode, Uri};
use ureq::{Agent, Body, Timeout};

use super::{HubId, HubOptions, Progress, Report, cancelled};
use crate::{Error, Kind, Result};

/// More hops than any Hub needs; a loop ends here.
const MAX_HOPS: usize = 8;
/// A server may ask for a pause (`Retry-After`), but not for more than this.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
/// The description of a repository and the index of its shards are text of some kilobytes.
const TEXT_LIMIT: u64 = 32 << 20;

/// Why a request brought nothing.
pub(super) enum Trouble {
    /// Asking again cannot help.
    Final(Error),
    /// No connection was made: no network, a wrong name, nobody listening.
    Unreachable(String),
    /// Asking again may help, not before the given time.
    Passing(String, Option<Duration>),
}

impl From<Error> for Trouble {
    fn from(error: Error) -> Self {
        Trouble::Final(error)
    }
}

/// What the Hub says about one file before it is fetched.
pub(super) struct Remote {
    /// Name in the repository.
    pub(super) file: String,
    /// Where the endpoint gives it.
    pub(super) url: String,
    /// Name of the blob: the SHA-256 of a large file, the git id of a small one.
    pub(super) etag: String,
    /// Length in bytes.
    pub(super) size: u64,
}

/// The description of a repository at a revision.
#[derive(serde::Deserialize)]
pub(super) struct Listing {
    /// The commit, 40 hexadecimal digits.
    pub(super) sha: String,
    siblings: Vec<Sibling>,
}

#[derive(serde::Deserialize)]
struct Sibling {
    rfilename: String,
}

impl Listing {
    /// The names of all files of the repository, folders included.
    pub(super) fn names(self) -> Vec<String> {
        self.siblings.into_iter().map(|s| s.rfilename).collect()
    }
}

/// A connection to one endpoint on behalf of one model.
pub(super) struct Wire<'a> {
    agent: Agent,
    options: &'a HubOptions,
    id: &'a HubId,
}

enum Method {
    Head,
    Get,
}

impl<'a> Wire<'a> {
    pub(super) fn new(options: &'a HubOptions, id: &'a HubId) -> Self {
        let mut config = Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .max_redirects_will_error(false)
            .user_agent(concat!("paligemma/", env!("CARGO_PKG_VERSION")))
            // A compressed answer would make lengths and ranges mean something else.
            .accept_encoding("identity")
            .timeout_resolve(Some(options.stall.min(Duration::from_secs(10))))
            .timeout_connect(Some(options.stall.min(Duration::from_secs(10))))
            .timeout_recv_response(Some(options.stall))
            .timeout_per_read(Some(options.stall));
        if !options.use_proxy {
            config = config.proxy(None);
        }
        Wire { agent: config.build().into(), options, id }
    }

    /// The commit and the file names of the model at its revision.
    pub(super) fn listing(&self, report: &mut Report) -> Result<Listing> {
        let url = format!(
            "{}/api/models/{}/revision/{}",
            self.options.endpoint,
            self.id.repo,
            percent(self.id.revision())
        );
        let text = self.ask(&url, report, || {
            let (mut response, _) = self.send(Method::Get, &url, None)?;
            if response.status() != StatusCode::OK {
                return Err(self.refusal(&response, &url, None));
            }
            read_text(&mut response, &url)
        })?;
        let listing: Listing = serde_json::from_slice(&text).map_err(|e| {
            Error::new(Kind::Network, "the Hub's description of the model is not understood")
                .at(&url)
                .expected("an object with \"sha\" and \"siblings\"")
                .hint("if HF_ENDPOINT is set, does it name a Hub?")
                .because(e)
        })?;
        if !super::is_commit(&listing.sha) {
            return Err(Error::new(Kind::Network, "the Hub names a commit that is none")
                .at(&url)
                .expected("40 hexadecimal digits in \"sha\""));
        }
        Ok(listing)
    }

    /// Length and hash of `file` at `commit`, without its bytes.
    pub(super) fn head(&self, commit: &str, file: &str, report: &mut Report) -> Result<Remote> {
        let url =
            format!("{}/{}/resolve/{commit}/{}", self.options.endpoint, self.id.repo, percent_path(file));
        let (etag, size) = self.ask(&url, report, || {
            let (response, seen) = self.send(Method::Head, &url, None)?;
            let status = response.status();
            if !status.is_success() && !status.is_redirection() {
                return Err(self.refusal(&response, &url, Some(file)));
            }
            Ok((seen.etag, seen.size))
        })?;
        let missing = |header: &str| {
            Error::new(Kind::Network, format!("the Hub does not say the {header} of {file}"))
                .at(&url)
                .hint("if HF_ENDPOINT is set, does it name a Hub?")
        };
        let etag = etag.ok_or_else(|| missing("ETag"))?;
        let size = size.ok_or_else(|| missing("length"))?;
        if !is_blob_name(&etag) {
            // The ETag becomes a file name in the cache.
            return Err(Error::new(Kind::Network, format!("the ETag of {file} cannot name a file"))
                .at(&url)
                .expected("letters, digits, '-', '_' and '.'"));
        }
        Ok(Remote { file: file.to_owned(), url, etag, size })
    }

    /// Opens the bytes of a file from `offset` on. The status is 200 (all bytes), 206 or 416.
    pub(super) fn open(&self, remote: &Remote, offset: u64) -> Result<Response<Body>, Trouble> {
        let (response, _) = self.send(Method::Get, &remote.url, Some(offset).filter(|&o| o > 0))?;
        match response.status() {
            StatusCode::OK | StatusCode::PARTIAL_CONTENT | StatusCode::RANGE_NOT_SATISFIABLE => Ok(response),
            _ => Err(self.refusal(&response, &remote.url, Some(&remote.file))),
        }
    }

    /// Repeats a small request while its trouble is a passing one.
    fn ask<T>(
        &self,
        url: &str,
        report: &mut Report,
        mut attempt: impl FnMut() -> Result<T, Trouble>,
    ) -> Result<T> {
        let mut failures = 0;
        loop {
            match attempt() {
                Ok(value) => return Ok(value),
                Err(Trouble::Final(error)) => return Err(error),
                Err(Trouble::Unreachable(why)) => return Err(self.unreachable(&why, url)),
                Err(Trouble::Passing(why, wait)) => {
                    failures += 1;
                    self.pause(failures, &why, wait, url, report)?;
                }
            }
        }
    }

    /// Waits before attempt `failures + 1`, or gives up: 1, 2, 4, 8 seconds unless the server says otherwise.
    pub(super) fn pause(
        &self,
        failures: u32,
        why: &str,
        wait: Option<Duration>,
        url: &str,
        report: &mut Report,
    ) -> Result<()> {
        if failures >= self.options.attempts {
            return Err(Error::new(Kind::Network, format!("{why}, {failures} times in a row"))
                .at(url)
                .hint("try again later; what has arrived is kept and not fetched again"));
        }
        let doubled = self.options.first_delay.saturating_mul(1 << (failures - 1).min(3));
        let wait = wait.unwrap_or(doubled).min(LONGEST_PAUSE);
        if report(Progress::Retrying { why, wait }).is_break() {
            return Err(cancelled());
        }
        std::thread::sleep(wait);
        Ok(())
    }

    pub(super) fn unreachable(&self, why: &str, url: &str) -> Error {
        Error::new(Kind::Network, format!("cannot reach {}: {why}", self.options.endpoint)).at(url).hint(
            "check the network, HTTPS_PROXY and HF_ENDPOINT; or give a folder, or a model of `paligemma ls`",
        )
    }

    /// One request, its redirects followed. A HEAD stops before it leaves the endpoint once it knows enough:
    /// the storage behind the Hub has other ETags.
    fn send(
        &self,
        method: Method,
        url: &str,
        offset: Option<u64>,
    ) -> Result<(Response<Body>, Seen), Trouble> {
        let home = origin(url)?;
        let mut url = url.to_owned();
        let mut seen = Seen::default();
        for _ in 0..MAX_HOPS {
            let at_home = origin(&url)? == home;
            let mut request = match method {
                Method::Head => self.agent.head(&url),
                Method::Get => self.agent.get(&url),
            };
            if let Some(offset) = offset {
                request = request.header("Range", format!("bytes={offset}-"));
            }
            if let (Some(token), true) = (&self.options.token, at_home) {
                request = request.header("Authorization", format!("Bearer {}", token.expose()));
            }
            let response = request.call().map_err(|e| self.transport(e, &url))?;
            seen.update(response.headers(), response.status().is_redirection(), at_home);
            let Some(next) = redirect(&response, &url)? else { return Ok((response, seen)) };
            let leaves = origin(&next)? != home;
            if matches!(method, Method::Head) && leaves && seen.etag.is_some() && seen.size.is_some() {
                return Ok((response, seen));
            }
            url = next;
        }
        Err(Error::new(Kind::Network, format!("more than {MAX_HOPS} redirects"))
            .at(without_query(&url))
            .hint("if HF_ENDPOINT is set, does it name a Hub?")
            .into())
    }

    fn transport(&self, error: ureq::Error, url: &str) -> Trouble {
        let why = error.to_string();
        match error {
            ureq::Error::HostNotFound | ureq::Error::ConnectionFailed => Trouble::Unreachable(why),
            ureq::Error::Timeout(Timeout::Resolve | Timeout::Connect) => Trouble::Unreachable(why),
            ureq::Error::Timeout(_) => Trouble::Passing("the server stopped answering".into(), None),
            ureq::Error::Io(e) => match e.kind() {
                ErrorKind::ConnectionReset
                | ErrorKind::ConnectionAborted
                | ErrorKind::BrokenPipe
                | ErrorKind::UnexpectedEof
                | ErrorKind::TimedOut
                | ErrorKind::WouldBlock
                | ErrorKind::Interrupted => Trouble::Passing(format!("the connection broke ({why})"), None),
                // The TLS layer reports so what it does not trust or understand.
                ErrorKind::InvalidData => Error::new(
                    Kind::Network,
                    format!("no secure connection to {}: {e}", self.options.endpoint),
                )
                .at(without_query(url))
                .hint("check HF_ENDPOINT, HTTPS_PROXY and the machine's clock; the roots are Mozilla's")
                .because(e)
                .into(),
                // Refused, no route, an unknown name: the last has no kind of its own.
                _ => Trouble::Unreachable(why),
            },
            ureq::Error::Protocol(_) => Trouble::Passing(format!("the connection broke ({why})"), None),
            other => Error::new(Kind::Network, format!("the request cannot be made: {why}"))
                .at(without_query(url))
                .hint("check HF_ENDPOINT, HTTPS_PROXY and the machine's clock and certificates")
                .because(other)
                .into(),
        }
    }

    /// What an answer that is no success means.
    fn refusal(&self, response: &Response<Body>, url: &str, file: Option<&str>) -> Trouble {
        let header = |name: &str| response.headers().get(name).and_then(|v| v.to_str().ok()).unwrap_or("");
        let status = response.status();
        let (code, message) = (header("x-error-code"), header("x-error-message"));
        let (repo, revision) = (&self.id.repo, self.id.revision());
        let network = |what: String| Error::new(Kind::Network, what).at(without_query(url));
        match (status.as_u16(), code) {
            (_, "GatedRepo") => gated(self.options, repo, true).into(),
            (_, "RevisionNotFound") => network(format!("{repo} has no revision '{revision}'"))
                .hint("leave out @revision for the newest, or name a branch, a tag or a commit")
                .into(),
            (_, "EntryNotFound") => {
                network(format!("{repo} has no file {} at '{revision}'", file.unwrap_or("of that name")))
                    .into()
            }
            (_, "RepoNotFound") => network(format!("the Hub has no model {repo}, or hides it from you"))
                .hint(not_found_hint(self.options, repo))
                .into(),
            (401, _) if message.starts_with("Invalid credentials") => network(format!(
                "the Hub does not accept the token from {}",
                self.options.token_source()
            ))
            .hint("run `hf auth login`, or set HF_TOKEN to a token of https://huggingface.co/settings/tokens")
            .into(),
            (403, _) if message.starts_with("Access to this resource is disabled") => {
                network(format!("the Hub has disabled {repo}")).into()
            }
            (401 | 403, _) => gated(self.options, repo, false).into(),
            (404, _) => {
                network(format!("the Hub has no model {repo}, or the model no revision '{revision}'"))
                    .hint(not_found_hint(self.options, repo))
                    .into()
            }
            (408 | 425 | 429 | 500..=599, _) => {
                let wait = header("retry-after").trim().parse().ok().map(Duration::from_secs);
                Trouble::Passing(format!("the Hub answers {status}"), wait)
            }
            _ => network(format!("the Hub answers {status}"))
                .hint("if HF_ENDPOINT is set, does it name a Hub?")
                .into(),
        }
    }
}

/// What the hops of a request said about the file.
#[derive(Default)]
struct Seen {
    etag: Option<String>,
    size: Option<u64>,
}

impl Seen {
    /// The endpoint's word counts; another host only fills what the endpoint left open.
    fn update(&mut self, headers: &HeaderMap, is_redirect: bool, at_home: bool) {
        let text = |name: &str| headers.get(name).and_then(|v| v.to_str().ok());
        // The length and the ETag of a redirect are those of its own text, unless they say "linked".
        let plain = |name: &str| if is_redirect { None } else { text(name) };
        if let Some(etag) = text("x-linked-etag").or_else(|| plain("etag"))
            && (at_home || self.etag.is_none())
        {
            self.etag = Some(etag.trim_start_matches("W/").trim_matches('"').to_owned());
        }
        if let Some(size) = text("x-linked-size").or_else(|| plain("content-length"))
            && (at_home || self.size.is_none())
        {
            self.size = size.trim().parse().ok();
        }
    }
}

/// The sentence for a model whose licence has to be accepted first.
fn gated(options: &HubOptions, repo: &str, is_certain: bool) -> Error {
    let mut hint = String::from(
        "then run `hf auth login`, or set HF_TOKEN; or give a folder: paligemma run ./model cat.jpg",
    );
    if options.token.is_some() {
        hint += &format!(
            "\n(a token from {} was sent: its account must have accepted the licence, and a fine-grained token \
             needs the right to read gated repositories)",
            options.token_source()
        );
    }
    if !is_certain {
        hint += "\n(a private or misspelt id is answered in the same way";
        if let Some(near) = super::locate::nearest_published(repo) {
            hint += &format!("; did you mean {near}?");
        }
        hint += ")";
    }
    Error::new(
        Kind::Network,
        format!(
            "{repo} is gated: the licence must be accepted once\n  https://huggingface.co/{repo}   (click \"Acknowledge license\")"
        ),
    )
    .hint(hint)
}

fn not_found_hint(options: &HubOptions, repo: &str) -> String {
    match super::locate::nearest_published(repo) {
        Some(near) => format!("did you mean {near}?"),
        None if options.token.is_none() => {
            "check the name; a private model needs `hf auth login` or HF_TOKEN".into()
        }
        None => "check the name, and that the token may read it".into(),
    }
}

fn read_text(response: &mut Response<Body>, url: &str) -> Result<Vec<u8>, Trouble> {
    response.body_mut().with_config().limit(TEXT_LIMIT).read_to_vec().map_err(|e| match e {
        ureq::Error::BodyExceedsLimit(_) => Error::new(Kind::Network, "the Hub's answer is too long")
            .at(url)
            .expected("at most 32 MiB")
            .into(),
        other => Trouble::Passing(format!("the connection broke ({other})"), None),
    })
}

/// The next address of a redirect; none when the answer is no redirect.
fn redirect(response: &Response<Body>, url: &str) -> Result<Option<String>, Trouble> {
    if !matches!(response.status().as_u16(), 301 | 302 | 303 | 307 | 308) {
        return Ok(None);
    }
    let bad = |what: &str| Error::new(Kind::Network, what.to_owned()).at(without_query(url));
    let location = response.headers().get("location").and_then(|v| v.to_str().ok());
    let location = location.ok_or_else(|| bad("a redirect without an address"))?;
    let (scheme, host, port) = origin(url)?;
    let next = if location.starts_with("http://") || location.starts_with("https://") {
        location.to_owned()
    } else if location.starts_with("//") {
        format!("{scheme}:{location}")
    } else if location.starts_with('/') {
        format!("{scheme}://{host}:{port}{location}")
    } else {
        return Err(bad("a redirect to an address that is not understood").into());
    };
    let (next_scheme, ..) = origin(&next)?;
    if scheme == "https" && next_scheme != "https" {
        return Err(bad("a redirect from https to http is not followed").into());
    }
    Ok(Some(next))
}

/// Scheme, host and port: what a token belongs to.
fn origin(url: &str) -> Result<(String, String, u16), Trouble> {
    let bad = || {
        Error::new(Kind::Network, "not an address of a Hub")
            .at(without_query(url))
            .expected("https://host or http://host:port")
            .hint("check HF_ENDPOINT")
    };
    let uri: Uri = url.parse().map_err(|_| bad())?;
    let scheme = uri.scheme_str().unwrap_or("").to_ascii_lowercase();
    let host = uri.host().unwrap_or("").to_ascii_lowercase();
    let default_port = match scheme.as_str() {
        "https" => 443,
        "http" => 80,
        _ => return Err(bad().into()),
    };
    if host.is_empty() {
        return Err(bad().into());
    }
    Ok((scheme, host, uri.port_u16().unwrap_or(default_port)))
}

/// The address without its query, which may be a signature.
fn without_query(url: &str) -> &str {
    url.split(['?', '#']).next().unwrap_or("")
}

/// Whether a cleaned ETag may name a blob in the cache.
fn is_blob_name(etag: &str) -> bool {
    (1..=128).contains(&etag.len())
        && !etag.starts_with('.')
        && etag.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
}

/// Percent-encodes one path segment (a revision `a/b` stays one segment: `a%2Fb`).
fn percent(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for b in text.bytes() {
        match b {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => out.push(char::from(b)),
            _ => out += &format!("%{b:02X}"),
        }
    }
    out
}

fn percent_path(path: &str) -> String {
    path.split('/').map(percent).collect::<Vec<_>>().join("/")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_blob_name_cannot_leave_its_folder() {
        for good in ["d7edf6bd2a681fb0175f7735299831ee1b22b812", "a-3", "x.y"] {
            assert!(is_blob_name(good), "{good}");
        }
        for bad in ["", ".", "..", "../x", "a/b", "a\\b", ".hidden", "a b", "C:x", &"a".repeat(129)] {
            assert!(!is_blob_name(bad), "{bad}");
        }
    }

    #[test]
    fn the_token_belongs_to_scheme_host_and_port() {
        let o = |url: &str| origin(url).ok();
        assert_eq!(o("https://Hub.co/a?b"), o("https://hub.co:443"));
        assert_ne!(o("https://hub.co"), o("http://hub.co"));
        assert_ne!(o("http://hub.co:80"), o("http://hub.co:81"));
        assert_ne!(o("https://hub.co"), o("https://hub.co.evil.org"));
        assert_ne!(o("https://hub.co"), o("https://evil.org/https://hub.co"));
        assert_ne!(o("https://hub.co"), o("https://hub.co@evil.org"));
        assert_eq!(o("file:///etc/passwd"), None);
        assert_eq!(o("gopher"), None);
    }

    #[test]
    fn a_redirect_is_understood_or_refused_and_never_leaves_https() {
        let to = |from: &str, location: &str| {
            let response = Response::builder().status(302).header("Location", location);
            let response = response.body(Body::builder().data("")).unwrap();
            redirect(&response, from).ok().flatten()
        };
        for (from, location, next) in [
            ("https://hub.co/a", "https://cdn.co/x?y", Some("https://cdn.co/x?y")),
            ("https://hub.co/a", "//cdn.co/x", Some("https://cdn.co/x")),
            ("https://hub.co/a", "/b?c", Some("https://hub.co:443/b?c")),
            ("http://[::1]:9/a", "/b", Some("http://[::1]:9/b")),
            ("http://hub.co/a", "https://cdn.co/x", Some("https://cdn.co/x")),
            ("https://hub.co/a", "http://cdn.co/x", None),
            ("https://hub.co/a", "http://hub.co/x", None),
            ("https://hub.co/a", "ftp://hub.co/x", None),
            ("https://hub.co/a", "b", None),
            ("https://hub.co/a", "https://", None),
        ] {
            assert_eq!(to(from, location).as_deref(), next, "{from} -> {location}");
        }
    }

    #[test]
    fn an_address_in_an_error_has_no_signature() {
        assert_eq!(without_query("https://cdn/x?Signature=abc#d"), "https://cdn/x");
    }

    #[test]
    fn revisions_and_names_are_percent_encoded() {
        assert_eq!(percent("refs/pr/1"), "refs%2Fpr%2F1");
        assert_eq!(percent_path("a b/é.npz"), "a%20b/%C3%A9.npz");
    }
}
