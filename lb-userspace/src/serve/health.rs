//! The answers of `/healthz` and `/livez`, as pure functions of the agent's state.
//!
//! They have the keys of kube-proxy's answers (pkg/proxy/healthcheck/proxy_health.go), and a
//! reason.

use std::collections::BTreeMap;
use std::time::{Duration, Instant, SystemTime};

use hyper::StatusCode;
use k8s_openapi::jiff::Timestamp;
use serde::Serialize;

/// The main loop updates its state about every second. Without an update for this time it is stuck.
const STUCK_AFTER: Duration = Duration::from_secs(30);
/// If a change is not in the maps after this time, load balancers should avoid the node. It is the
/// value of kube-proxy: twice its sync period of 30 s.
const PENDING_LIMIT: Duration = Duration::from_secs(60);

/// The state of the agent, as the main loop publishes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AgentState {
    pub progress: Progress,
    /// The time at which the main loop last updated this state.
    pub alive: Instant,
    /// The time at which the maps were last known to be up to date.
    pub last_updated: Option<SystemTime>,
    /// The change that has been failing longest. Those for which maps become larger do not count.
    pub pending: Option<Pending>,
    /// Whether load balancers may send new connections to this node (KEP-3836): its Node object
    /// exists and is not about to be deleted.
    pub node_eligible: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Progress {
    /// The initial sync is not complete. The maps still have the content of an earlier agent. The
    /// text names the missing resources.
    Starting(String),
    /// The initial sync is complete.
    Serving,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pending {
    pub since: Instant,
    pub what: String,
}

impl AgentState {
    pub fn starting(awaited: impl Into<String>) -> Self {
        Self {
            progress: Progress::Starting(awaited.into()),
            alive: Instant::now(),
            last_updated: None,
            pending: None,
            node_eligible: true,
        }
    }

    /// Returns the answer of `/healthz`, for load balancers and readiness probes: whether this node
    /// serves the Services of the cluster.
    pub fn healthz(&self, now: Instant, wall_clock: SystemTime) -> HealthReport {
        let ineligible =
            || (!self.node_eligible).then(|| "the Node is missing or about to be deleted".to_owned());
        let reason = self.reason(now).or_else(ineligible);
        HealthReport::new(self, Some(self.node_eligible), reason, now, wall_clock)
    }

    /// Returns the answer of `/livez`: whether the agent works. A restart does not help if a map is
    /// full or the API server is not reachable, so these are not reported here.
    pub fn livez(&self, now: Instant, wall_clock: SystemTime) -> HealthReport {
        HealthReport::new(self, None, self.stuck(now), now, wall_clock)
    }

    /// Returns whether the maps are up to date. Unlike `/healthz` it ignores whether the Node is
    /// eligible.
    pub fn is_healthy(&self, now: Instant) -> bool {
        self.reason(now).is_none()
    }

    /// Returns the reason why the agent is not healthy. Returns `None` if it is healthy.
    fn reason(&self, now: Instant) -> Option<String> {
        match &self.progress {
            Progress::Starting(awaited) => Some(awaited.clone()),
            Progress::Serving => self.stuck(now).or_else(|| self.overdue(now)),
        }
    }

    fn stuck(&self, now: Instant) -> Option<String> {
        let stuck = now.saturating_duration_since(self.alive);
        (stuck > STUCK_AFTER).then(|| format!("the main loop has been stuck for {} s", stuck.as_secs()))
    }

    fn overdue(&self, now: Instant) -> Option<String> {
        let pending = self.pending.as_ref()?;
        let waiting = now.saturating_duration_since(pending.since);
        (waiting > PENDING_LIMIT)
            .then(|| format!("not in the maps for {} s: {}", waiting.as_secs(), pending.what))
    }
}

/// The body of an answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct HealthReport {
    /// In RFC 3339. Null before the initial sync.
    last_updated: Option<String>,
    current_time: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    node_eligible: Option<bool>,
    healthy: bool,
    /// The reason why the agent is not healthy.
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
    /// By IP family. Empty before the initial sync. Both families are always written together.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    status: BTreeMap<&'static str, FamilyStatus>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
struct FamilyStatus {
    last_updated: String,
    healthy: bool,
}

impl HealthReport {
    fn new(
        state: &AgentState,
        node_eligible: Option<bool>,
        reason: Option<String>,
        now: Instant,
        wall_clock: SystemTime,
    ) -> Self {
        let last_updated = state.last_updated.map(rfc3339);
        let status = last_updated
            .clone()
            .map(|last_updated| FamilyStatus { last_updated, healthy: state.is_healthy(now) });
        let status = (["IPv4", "IPv6"].into_iter().zip(status.iter().cycle()))
            .map(|(family, status)| (family, status.clone()))
            .collect();
        Self {
            last_updated,
            current_time: rfc3339(wall_clock),
            node_eligible,
            healthy: reason.is_none(),
            reason,
            status,
        }
    }

    pub fn status(&self) -> StatusCode {
        if self.healthy { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE }
    }
}

/// Formats a time with milliseconds. A year that RFC 3339 cannot express results in the Unix epoch.
fn rfc3339(time: SystemTime) -> String {
    let millis = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_millis();
    let timestamp = i64::try_from(millis).ok().and_then(|millis| Timestamp::from_millisecond(millis).ok());
    timestamp.unwrap_or_default().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wall_clock(seconds: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
    }

    fn serving(now: Instant) -> AgentState {
        AgentState {
            progress: Progress::Serving,
            alive: now,
            last_updated: Some(wall_clock(1_700_000_000)),
            pending: None,
            node_eligible: true,
        }
    }

    fn json(report: &HealthReport) -> serde_json::Value {
        serde_json::to_value(report).unwrap()
    }

    #[test]
    fn healthy_answers_have_the_keys_of_kube_proxy() {
        let now = Instant::now();
        let report = serving(now).healthz(now, wall_clock(1_700_000_001));
        assert_eq!(report.status(), StatusCode::OK);
        assert_eq!(
            json(&report),
            serde_json::json!({
                "lastUpdated": "2023-11-14T22:13:20Z",
                "currentTime": "2023-11-14T22:13:21Z",
                "nodeEligible": true,
                "healthy": true,
                "status": {
                    "IPv4": { "lastUpdated": "2023-11-14T22:13:20Z", "healthy": true },
                    "IPv6": { "lastUpdated": "2023-11-14T22:13:20Z", "healthy": true },
                },
            })
        );
    }

    #[test]
    fn before_the_initial_sync_it_is_alive_and_not_healthy() {
        let state = AgentState::starting("waiting for Services");
        let healthz = state.healthz(state.alive, wall_clock(0));
        assert_eq!(healthz.status(), StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(json(&healthz)["reason"], "waiting for Services");
        assert_eq!(json(&healthz)["lastUpdated"], serde_json::Value::Null);
        assert!(json(&healthz).get("status").is_none());
        assert!(!state.is_healthy(state.alive));
        assert_eq!(state.livez(state.alive, wall_clock(0)).status(), StatusCode::OK);
    }

    #[test]
    fn a_node_about_to_be_deleted_is_alive_and_not_eligible() {
        let now = Instant::now();
        let state = AgentState { node_eligible: false, ..serving(now) };
        let healthz = state.healthz(now, wall_clock(0));
        assert_eq!(healthz.status(), StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(json(&healthz)["nodeEligible"], false);
        assert!(state.is_healthy(now), "its endpoints can be reached until the node is deleted");
        let livez = state.livez(now, wall_clock(0));
        assert_eq!(livez.status(), StatusCode::OK);
        assert!(json(&livez).get("nodeEligible").is_none());
    }

    #[test]
    fn a_stuck_main_loop_fails_both() {
        let now = Instant::now();
        let state = serving(now);
        let in_time = now + STUCK_AFTER;
        assert_eq!(state.livez(in_time, wall_clock(0)).status(), StatusCode::OK);
        let late = in_time + Duration::from_secs(1);
        assert_eq!(state.livez(late, wall_clock(0)).status(), StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(
            json(&state.healthz(late, wall_clock(0)))["reason"],
            "the main loop has been stuck for 31 s"
        );
    }

    #[test]
    fn a_change_that_waits_too_long_is_not_a_reason_to_restart() {
        let now = Instant::now();
        let late = now + PENDING_LIMIT + Duration::from_secs(1);
        let pending = Pending { since: now, what: "service port default/web TCP: map SLOTS is full".into() };
        let state = AgentState { pending: Some(pending), ..serving(late) };
        assert_eq!(state.healthz(now + PENDING_LIMIT, wall_clock(0)).status(), StatusCode::OK);
        assert_eq!(
            json(&state.healthz(late, wall_clock(0)))["reason"],
            "not in the maps for 61 s: service port default/web TCP: map SLOTS is full"
        );
        let livez = state.livez(late, wall_clock(0));
        assert_eq!(livez.status(), StatusCode::OK);
        assert_eq!(json(&livez)["status"]["IPv6"]["healthy"], false);
        assert!(!state.is_healthy(late));
    }
}
