//! What a real Docker engine (Debian's 20.10) once said to swd, said again, without an engine: each answer is the one that the engine got
//! and could live with. Recorded by `examples/record_docker.rs`.

use std::collections::BTreeMap;
use std::fs;

use serde_json::Value;
use tests::containers::nothing_is_left;
use tests::docker::plugins;
use tests::outside::unwatched;
use tests::site::Site;

/// A request, and its answer.
struct Exchange {
    method: String,
    headers: BTreeMap<String, String>,
    /// As text: some have no body at all.
    request: String,
    status: u64,
    answer: Value,
}

impl Exchange {
    fn parse(line: &str) -> Self {
        let mut line: Value = serde_json::from_str(line).expect("JSON");
        let text = |value: &Value| value.as_str().expect("a text").to_owned();
        let headers = line["headers"].as_object().expect("headers");
        Self {
            method: text(&line["method"]),
            headers: headers.iter().map(|(name, value)| (name.clone(), text(value))).collect(),
            request: if line["request"].is_null() { String::new() } else { line["request"].to_string() },
            status: line["status"].as_u64().expect("a code"),
            answer: line["answer"].take(),
        }
    }
}

/// Makes equal what may differ: a MAC that swd chose, and the time in a refusal.
fn settled(mut answer: Value, request: &str) -> Value {
    if let Some(mac) = answer.pointer_mut("/Interface/MacAddress")
        && mac.as_str().is_some_and(|mac| !mac.is_empty() && !request.contains(mac))
    {
        *mac = "chosen".into();
    }
    for key in ["Err", "Error"] {
        if let Some(error) = answer.get_mut(key)
            && let Some((before, rest)) = error.as_str().and_then(|text| text.split_once(" since "))
        {
            let after = rest.split_once(';').map_or("", |(_, after)| after);
            *error = format!("{before};{after}").into();
        }
    }
    answer
}

#[test]
fn what_an_engine_said_gets_the_answers_that_it_got() {
    let recorded = concat!(env!("CARGO_MANIFEST_DIR"), "/recorded/docker.jsonl");
    let recorded = fs::read_to_string(recorded).expect("what was recorded");
    let mut site = Site::stopped();
    let folder = plugins(&site).display().to_string();
    site = site.arguments(&["--uplink", "auto", "--docker", "--docker-plugins", &folder]);
    let _wan = unwatched(&site.host);
    site.start();
    let socket = plugins(&site).join(format!("{}.sock", site.name())).display().to_string();
    let mut methods = BTreeMap::new();
    for (number, line) in recorded.lines().enumerate() {
        let exchange = Exchange::parse(line);
        let headers: Vec<String> =
            exchange.headers.iter().map(|(name, value)| format!("{name}: {value}")).collect();
        let mut words = vec!["curl", "-sS", "--unix-socket", &socket, "-w", "\n%{http_code}"];
        words.extend(headers.iter().flat_map(|header| ["-H", header.as_str()]));
        let url = format!("http://swd/{}", exchange.method);
        words.extend(["-d", &exchange.request, &url]);
        let out = site.host.run(&words).ok().stdout;
        let (answer, status) = out.rsplit_once('\n').expect("a code");
        let answer: Value = serde_json::from_str(answer).expect("JSON");
        let what = format!("line {}: {} {}", number + 1, exchange.method, exchange.request);
        assert_eq!(status, exchange.status.to_string(), "{what}: {answer}");
        let expected = settled(exchange.answer, &exchange.request);
        assert_eq!(settled(answer, &exchange.request), expected, "{what}");
        *methods.entry(exchange.method).or_insert(0_u32) += 1;
    }
    for method in ["CreateNetwork", "DeleteNetwork", "CreateEndpoint", "DeleteEndpoint", "Join", "Leave"] {
        assert!(methods.contains_key(&format!("NetworkDriver.{method}")), "{methods:?}");
    }
    for method in ["RequestPool", "ReleasePool", "RequestAddress", "ReleaseAddress"] {
        assert!(methods.contains_key(&format!("IpamDriver.{method}")), "{methods:?}");
    }
    nothing_is_left(&site);
    assert_eq!(site.rows(&["network", "ls"]).len(), 1, "the default network alone");
}
