//! The annotations about the selection of endpoints. `docs/algorithms.md` describes them for users.

use std::str::FromStr;
use std::time::Duration;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use lb_model::{
    Algorithm, Balancing, DRAIN_ANNOTATION, HashInput, NodeDrain, PlaceHash, ProblemKind, Problems,
    Thresholds, WEIGHT_ANNOTATION, Weight,
};

use super::duration::parse_duration;

/// The domain of all annotations that this proxy reads.
const DOMAIN: &str = "lb.sluice.dev/";
const ALGORITHM: &str = "lb.sluice.dev/algorithm";
const BALANCE: &str = "lb.sluice.dev/balance";
const HASH: &str = "lb.sluice.dev/hash";
const FAILOVER: &str = "lb.sluice.dev/failover";
const PASSIVE_HEALTH: &str = "lb.sluice.dev/passive-health";
const UPPER_THRESHOLD: &str = "lb.sluice.dev/upper-threshold";
const LOWER_THRESHOLD: &str = "lb.sluice.dev/lower-threshold";
const FALLBACK: &str = "lb.sluice.dev/fallback";
const DRAIN_TIMEOUT: &str = "lb.sluice.dev/drain-timeout";
const MAX_CONNECTION_AGE: &str = "lb.sluice.dev/max-connection-age";
const WEIGHTS: &str = "lb.sluice.dev/weights";

/// The least value of [`MAX_CONNECTION_AGE`]. The agent looks for old connections every 10 s, and a
/// smaller spread would reset too many of them in the same second.
const LEAST_CONNECTION_AGE: Duration = Duration::from_secs(10);

/// The greatest number of entries in the annotation [`WEIGHTS`].
const MOST_WEIGHTS: usize = 1_000;

/// Returns the annotations of a Service. A value that is not valid has the effect of a missing one.
pub(super) fn of_service(metadata: &ObjectMeta, problems: &mut Problems) -> Balancing {
    let known = [
        ALGORITHM,
        BALANCE,
        HASH,
        FALLBACK,
        UPPER_THRESHOLD,
        LOWER_THRESHOLD,
        FAILOVER,
        PASSIVE_HEALTH,
        DRAIN_TIMEOUT,
        MAX_CONNECTION_AGE,
        WEIGHTS,
    ];
    report_unknown(metadata, &known, problems);
    let algorithm = value(metadata, ALGORITHM).and_then(|text| algorithm(text, problems));
    let balance = value(metadata, BALANCE).and_then(|text| balance(text, algorithm, problems));
    let algorithm = algorithm.or(balance);
    let hash = value(metadata, HASH).and_then(|text| hash(text, algorithm, problems)).unwrap_or_default();
    let weights = value(metadata, WEIGHTS).map(|text| weights(text, problems)).unwrap_or_default();
    let failover = value(metadata, FAILOVER).is_some_and(|text| switch(FAILOVER, text, problems));
    let passive_health =
        value(metadata, PASSIVE_HEALTH).and_then(|text| on_or_off(PASSIVE_HEALTH, text, failover, problems));
    let passive_health = passive_health.unwrap_or(failover);
    let drain_timeout = value(metadata, DRAIN_TIMEOUT).and_then(|text| drain_timeout(text, problems));
    let max_connection_age =
        value(metadata, MAX_CONNECTION_AGE).and_then(|text| max_connection_age(text, problems));
    let thresholds = thresholds(metadata, problems);
    let fallback = fallback(metadata, algorithm, thresholds, problems);
    Balancing {
        algorithm,
        hash,
        failover,
        passive_health,
        thresholds,
        fallback,
        drain_timeout,
        max_connection_age,
        weights,
    }
}

/// Returns the thresholds. IPVS refuses a lower one that is greater than the upper one, and ignores
/// a lower one alone.
fn thresholds(metadata: &ObjectMeta, problems: &mut Problems) -> Option<Thresholds> {
    let mut number = |annotation, until_then| {
        let text = value(metadata, annotation)?;
        let number = parse_digits::<u32>(text).filter(|number| *number > 0);
        if number.is_none() {
            problems.error(
                ProblemKind::OutOfRange,
                field(annotation),
                format_args!("`{text}` is not a number of connections"),
                format_args!("use a number from 1 to {}; {until_then} until then", u32::MAX),
            );
        }
        number
    };
    let upper = number(UPPER_THRESHOLD, "the number of connections has no limit");
    let lower = number(LOWER_THRESHOLD, "it is three quarters of the upper threshold");
    match (upper, lower) {
        (None, Some(_)) if value(metadata, UPPER_THRESHOLD).is_none() => problems.error(
            ProblemKind::Contradiction,
            field(LOWER_THRESHOLD),
            "has no effect without an upper threshold",
            format_args!("add {UPPER_THRESHOLD}, or remove it"),
        ),
        (Some(upper), Some(lower)) if lower > upper => {
            problems.error(
                ProblemKind::OutOfRange,
                field(LOWER_THRESHOLD),
                format_args!("{lower} is greater than the upper threshold {upper}"),
                format_args!(
                    "use a number from 1 to {upper}; it is three quarters of the upper threshold until then"
                ),
            );
            return Some(Thresholds { upper, lower: 0 });
        }
        _ => {}
    }
    upper.map(|upper| Thresholds { upper, lower: lower.unwrap_or(0) })
}

/// Returns whether a client whose endpoint is overloaded gets another one.
fn fallback(
    metadata: &ObjectMeta,
    algorithm: Option<Algorithm>,
    thresholds: Option<Thresholds>,
    problems: &mut Problems,
) -> bool {
    let Some(text) = value(metadata, FALLBACK) else { return false };
    let fallback = switch(FALLBACK, text, problems);
    if fallback && algorithm.is_some_and(|algorithm| !algorithm.is_by_hash()) {
        problems.note(
            ProblemKind::Contradiction,
            field(FALLBACK),
            "has no effect: the algorithm of this Service replaces an endpoint that is overloaded in any case",
            "use algorithm sh, dh or mh, or remove it",
        );
    } else if fallback && thresholds.is_none() {
        problems.note(
            ProblemKind::Contradiction,
            field(FALLBACK),
            "has no effect: no endpoint of this Service can be overloaded",
            format_args!("add {UPPER_THRESHOLD}, or remove it"),
        );
    }
    fallback
}

/// Returns the weight of a Pod, or of all endpoints of an EndpointSlice. `otherwise` is the effect
/// of a missing weight.
pub(super) fn weight(metadata: &ObjectMeta, otherwise: &str, problems: &mut Problems) -> Option<Weight> {
    report_unknown(metadata, &[WEIGHT_ANNOTATION], problems);
    let text = value(metadata, WEIGHT_ANNOTATION)?;
    let weight = parse_weight(text);
    if weight.is_none() {
        problems.error(
            ProblemKind::OutOfRange,
            field(WEIGHT_ANNOTATION),
            format_args!("`{text}` is not a weight"),
            format_args!("use a number from 0 to {}; {otherwise} until then", Weight::MAX),
        );
    }
    weight
}

/// Returns the drain that the annotation of a Node requests.
pub(super) fn node_drain(metadata: &ObjectMeta, problems: &mut Problems) -> Option<NodeDrain> {
    report_unknown(metadata, &[DRAIN_ANNOTATION], problems);
    let text = value(metadata, DRAIN_ANNOTATION)?;
    match (text, parse_duration(text)) {
        ("" | "true", _) => Some(NodeDrain::default()),
        ("false", _) => None,
        (_, Some(limit)) => Some(NodeDrain { limit: Some(limit) }),
        (_, None) => {
            problems.error(
                ProblemKind::UnknownValue,
                field(DRAIN_ANNOTATION),
                format_args!("`{text}` is neither true, nor false, nor a time of a week or less"),
                "use true, or a time limit such as 90s, 10m or 1h30m; the node does not drain until then",
            );
            None
        }
    }
}

/// Returns the time limit of drains.
fn drain_timeout(text: &str, problems: &mut Problems) -> Option<Duration> {
    let timeout = parse_duration(text);
    if timeout.is_none() {
        problems.error(
            ProblemKind::UnknownValue,
            field(DRAIN_TIMEOUT),
            format_args!("`{text}` is not a time of a week or less"),
            "use a time such as 90s, 10m or 1h30m; connections are not reset until then",
        );
    }
    timeout
}

/// Returns the age at which connections are reset.
fn max_connection_age(text: &str, problems: &mut Problems) -> Option<Duration> {
    let age = parse_duration(text);
    let (kind, reason) = match age {
        Some(age) if age >= LEAST_CONNECTION_AGE => return Some(age),
        Some(_) => {
            (ProblemKind::OutOfRange, format!("`{text}` is less than {} s", LEAST_CONNECTION_AGE.as_secs()))
        }
        None => (ProblemKind::UnknownValue, format!("`{text}` is not a time of a week or less")),
    };
    problems.error(
        kind,
        field(MAX_CONNECTION_AGE),
        reason,
        "use a time from 10s on, such as 10m or 1h30m; connections have no maximum age until then",
    );
    None
}

fn value<'a>(metadata: &'a ObjectMeta, annotation: &str) -> Option<&'a str> {
    Some(metadata.annotations.as_ref()?.get(annotation)?.trim())
}

fn field(annotation: &str) -> String {
    format!("metadata.annotations[{annotation}]")
}

/// Reports annotations of this proxy that the kind of object does not have: a misspelled name has
/// no effect.
fn report_unknown(metadata: &ObjectMeta, known: &[&str], problems: &mut Problems) {
    let names = metadata.annotations.iter().flat_map(|annotations| annotations.keys());
    for name in names.filter(|name| name.starts_with(DOMAIN) && !known.contains(&name.as_str())) {
        problems.error(
            ProblemKind::UnknownValue,
            field(name),
            "is not an annotation that this kind of object can have",
            format_args!("use {}, or remove it; it has no effect", known.join(", ")),
        );
    }
}

/// Returns the value of an annotation that is `true` or `false`.
fn switch(annotation: &str, text: &str, problems: &mut Problems) -> bool {
    if !["true", "false"].contains(&text) {
        problems.error(
            ProblemKind::UnknownValue,
            field(annotation),
            format_args!("`{text}` is neither true nor false"),
            "use true or false; it is false until then",
        );
    }
    text == "true"
}

/// Returns the value of an annotation that is `on` or `off`, and `default` until it is valid.
fn on_or_off(annotation: &str, text: &str, default: bool, problems: &mut Problems) -> Option<bool> {
    let value = match text {
        "on" => Some(true),
        "off" => Some(false),
        _ => None,
    };
    if value.is_none() {
        problems.error(
            ProblemKind::UnknownValue,
            field(annotation),
            format_args!("`{text}` is neither on nor off"),
            format_args!("use on or off; it is {} until then", if default { "on" } else { "off" }),
        );
    }
    value
}

fn algorithm(text: &str, problems: &mut Problems) -> Option<Algorithm> {
    if let Some(substitute) = Algorithm::substitute(text) {
        problems.note(
            ProblemKind::Contradiction,
            field(ALGORITHM),
            format_args!(
                "has the effect of {substitute}: {text} balances over destination addresses, and a Service \
                 is one destination"
            ),
            format_args!("use {substitute}"),
        );
        return Some(substitute);
    }
    let algorithm = Algorithm::named(text);
    if algorithm.is_none() {
        let names: Vec<_> = Algorithm::ALL.iter().map(|algorithm| algorithm.name()).collect();
        problems.error(
            ProblemKind::UnknownValue,
            field(ALGORITHM),
            format_args!("`{text}` is not an algorithm"),
            format_args!(
                "use one of {}; the Service has the default of the node until then",
                names.join(", ")
            ),
        );
    }
    algorithm
}

/// Returns the algorithm for what a Service balances. `algorithm` is that of the other annotation,
/// which takes precedence.
fn balance(text: &str, algorithm: Option<Algorithm>, problems: &mut Problems) -> Option<Algorithm> {
    if text != "connections" {
        problems.error(
            ProblemKind::UnknownValue,
            field(BALANCE),
            format_args!("`{text}` is not something that can be balanced"),
            "use connections, or remove it; it has no effect until then",
        );
        return None;
    }
    if let Some(algorithm) = algorithm.filter(|algorithm| !algorithm.compares_connections()) {
        problems.note(
            ProblemKind::Contradiction,
            field(BALANCE),
            format_args!("has no effect: the Service has the algorithm {algorithm}"),
            "remove one of the two annotations",
        );
    }
    Some(Algorithm::TwoChoices)
}

fn hash(text: &str, algorithm: Option<Algorithm>, problems: &mut Problems) -> Option<HashInput> {
    let hash = HashInput::named(text);
    if hash.is_none() {
        problems.error(
            ProblemKind::UnknownValue,
            field(HASH),
            format_args!("`{text}` is not a part of a connection"),
            "use source, source-port or destination; the hash is that of the source until then",
        );
    } else if algorithm.is_some_and(|algorithm| !algorithm.hashes_the_client()) {
        problems.note(
            ProblemKind::Contradiction,
            field(HASH),
            "has no effect on the algorithm of this Service",
            "use algorithm sh or mh, or remove it",
        );
    }
    hash
}

/// Parses `zone-a=3,node-7=0`. Reports each entry that is not valid, and ignores it.
fn weights(text: &str, problems: &mut Problems) -> Box<[(PlaceHash, Weight)]> {
    let mut weights = Vec::new();
    for entry in text.split(',').map(str::trim).filter(|entry| !entry.is_empty()) {
        if weights.len() == MOST_WEIGHTS {
            problems.error(
                ProblemKind::OutOfRange,
                field(WEIGHTS),
                format_args!("has more than {MOST_WEIGHTS} entries"),
                "name zones, or fewer nodes; the entries after these are ignored",
            );
            break;
        }
        let parsed = entry.split_once('=').and_then(|(place, weight)| {
            let place = Some(place.trim()).filter(|place| !place.is_empty())?;
            Some((PlaceHash::of(place), parse_weight(weight.trim())?))
        });
        match parsed {
            Some((place, _)) if weights.iter().any(|(known, _)| *known == place) => problems.error(
                ProblemKind::Duplicate,
                field(WEIGHTS),
                format_args!("`{entry}` names a zone or node again"),
                "name each zone and node once; the first weight counts",
            ),
            Some(parsed) => weights.push(parsed),
            None => problems.error(
                ProblemKind::UnknownValue,
                field(WEIGHTS),
                format_args!("`{entry}` is not a weight of a zone or node"),
                format_args!(
                    "use the form NAME=WEIGHT with a weight from 0 to {}; the entry is ignored",
                    Weight::MAX
                ),
            ),
        }
    }
    weights.sort_unstable();
    weights.into()
}

fn parse_weight(text: &str) -> Option<Weight> {
    parse_digits(text).map(Weight::new)
}

/// Parses a number that consists of digits.
fn parse_digits<T: FromStr>(text: &str) -> Option<T> {
    // `parse` accepts a plus sign.
    text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok())?
}
