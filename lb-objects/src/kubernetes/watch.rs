//! Runs one watch of the API server without end.

use std::collections::HashSet;
use std::time::Duration;

use futures::{Stream, StreamExt};
use kube::runtime::utils::Backoff;
use kube::runtime::watcher;
use lb_model::{ObjectName, Problem, ProblemKind, ProblemSource, Severity, SourceEvent, WatchedResource};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};

use crate::convert::Converted;

/// Describes a watched resource for [`run_watch`].
pub(super) struct WatchSpec<C, E> {
    pub resource: WatchedResource,
    /// The resource as RBAC rules name it, for messages.
    pub plural: &'static str,
    pub singular: &'static str,
    /// The agent starts even if the cluster does not serve the resource or refuses access to it.
    pub optional: bool,
    /// Where the right to read the resource is granted, and what happens without it.
    pub right: &'static str,
    pub convert: C,
    pub make_event: E,
}

/// The right to read a resource that is always read.
pub(super) const RIGHTS_OF_ALL: &str = "see the ClusterRole in deploy/";

/// The receiver of the events has been dropped.
struct Closed;

/// Exponential backoff after failed requests, as in client-go: 0.8 s, doubled up to 30 s, plus up
/// to 100 % jitter. The pause returns to 0.8 s after two minutes without a failure.
///
/// `default_backoff()` resets the pause with every item of the stream, and every attempt to list
/// begins with an item. Each agent would then send a request per second to a failed API server.
#[derive(Default)]
pub(super) struct WatchBackoff(watcher::DefaultBackoff);

impl Iterator for WatchBackoff {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        self.0.next()
    }
}

impl Backoff for WatchBackoff {
    /// Does nothing: the watcher calls it for every item. `next` counts the two minutes.
    fn reset(&mut self) {}
}

/// A watch without a failure for this time has recovered.
///
/// A watch that resumes after a failure returns nothing until an object changes. If the requests
/// still failed, the next failure would follow after at most 60 s of backoff ([`WatchBackoff`]) and
/// 30 s of connection timeout.
const RECOVERED_AFTER: Duration = Duration::from_secs(150);

/// A failure of the watch itself.
struct WatchFailure {
    /// HTTP status. `None` if the API server did not respond.
    code: Option<u16>,
    /// Time of the last occurrence.
    last: Instant,
}

/// Converts the items of a watch into events until the receiver of the events is dropped.
///
/// After each complete list (a restart, status 410, a lost connection) it sends deletions for the
/// objects that the list does not contain. An incomplete list deletes nothing.
pub(super) async fn run_watch<K, T, C, E>(
    stream: impl Stream<Item = watcher::Result<watcher::Event<K>>>,
    spec: WatchSpec<C, E>,
    events: &mpsc::Sender<SourceEvent>,
) where
    C: Fn(&K) -> Converted<T>,
    E: Fn(ObjectName, Option<T>) -> SourceEvent,
{
    let mut stream = std::pin::pin!(stream);
    let mut watch = ObjectWatch::new(spec, events);
    loop {
        let recovered = watch.failure.as_ref().map(|failure| failure.last + RECOVERED_AFTER);
        let done = tokio::select! {
            () = events.closed() => Err(Closed),
            item = stream.next() => match item {
                Some(item) => watch.handle(item).await,
                // The streams of kube-rs do not end. Those of tests do.
                None => Err(Closed),
            },
            () = sleep_until(recovered.unwrap_or_else(Instant::now)), if recovered.is_some() => {
                watch.report_recovery().await
            }
        };
        if done.is_err() {
            return;
        }
    }
}

struct ObjectWatch<'a, C, E> {
    spec: WatchSpec<C, E>,
    events: &'a mpsc::Sender<SourceEvent>,
    /// The objects that exist according to the events sent so far.
    sent: HashSet<ObjectName>,
    /// The objects of the list that is being received.
    listed: HashSet<ObjectName>,
    /// The objects with reported problems.
    faulty: HashSet<ObjectName>,
    /// The reported failure of the watch itself.
    failure: Option<WatchFailure>,
    synced: bool,
}

impl<'a, C, E> ObjectWatch<'a, C, E> {
    fn new(spec: WatchSpec<C, E>, events: &'a mpsc::Sender<SourceEvent>) -> Self {
        Self {
            spec,
            events,
            sent: HashSet::new(),
            listed: HashSet::new(),
            faulty: HashSet::new(),
            failure: None,
            synced: false,
        }
    }

    async fn handle<K, T>(&mut self, item: watcher::Result<watcher::Event<K>>) -> Result<(), Closed>
    where
        C: Fn(&K) -> Converted<T>,
        E: Fn(ObjectName, Option<T>) -> SourceEvent,
    {
        let event = match item {
            Ok(event) => event,
            Err(error) => return self.report_failure(&error).await,
        };
        match event {
            // The watcher is about to send the list request: no sign of recovery.
            watcher::Event::Init => {
                self.listed = HashSet::new();
                return Ok(());
            }
            watcher::Event::InitApply(object) => {
                let name = self.apply(object).await?;
                // Only few Pods have a weight. The names of the others take memory for nothing.
                if self.sent.contains(&name) || self.faulty.contains(&name) {
                    self.listed.insert(name);
                }
            }
            watcher::Event::InitDone => {
                let listed = std::mem::take(&mut self.listed);
                let previous = self.sent.union(&self.faulty);
                let deleted: Vec<ObjectName> =
                    previous.filter(|name| !listed.contains(name)).cloned().collect();
                for name in deleted {
                    self.delete(name).await?;
                }
                self.sent.shrink_to_fit();
                self.report_synced().await?;
            }
            watcher::Event::Apply(object) => drop(self.apply(object).await?),
            watcher::Event::Delete(object) => {
                let name = (self.spec.convert)(&object).name;
                self.delete(name).await?;
            }
        }
        self.report_recovery().await
    }

    async fn apply<K, T>(&mut self, object: K) -> Result<ObjectName, Closed>
    where
        C: Fn(&K) -> Converted<T>,
        E: Fn(ObjectName, Option<T>) -> SourceEvent,
    {
        let Converted { name, value, problems } = (self.spec.convert)(&object);
        drop(object);
        self.report_problems(&name, problems).await?;
        let is_news = match value {
            Some(_) => {
                self.sent.insert(name.clone());
                true
            }
            None => self.sent.remove(&name),
        };
        if is_news {
            self.send((self.spec.make_event)(name.clone(), value)).await?;
        }
        Ok(name)
    }

    async fn delete<T>(&mut self, name: ObjectName) -> Result<(), Closed>
    where
        E: Fn(ObjectName, Option<T>) -> SourceEvent,
    {
        self.report_problems(&name, Vec::new()).await?;
        if self.sent.remove(&name) {
            self.send((self.spec.make_event)(name, None)).await?;
        }
        Ok(())
    }

    async fn report_problems(&mut self, name: &ObjectName, problems: Vec<Problem>) -> Result<(), Closed> {
        let was_faulty =
            if problems.is_empty() { self.faulty.remove(name) } else { !self.faulty.insert(name.clone()) };
        if problems.is_empty() && !was_faulty {
            return Ok(());
        }
        let source = ProblemSource::Object(self.spec.singular, name.clone());
        self.send(SourceEvent::Report(source, problems)).await
    }

    async fn report_synced(&mut self) -> Result<(), Closed> {
        if !self.synced {
            self.synced = true;
            self.send(SourceEvent::Synced(self.spec.resource)).await?;
        }
        Ok(())
    }

    /// Reports the first failure and each failure with a new status code. Repeated failures are not
    /// reported again.
    async fn report_failure(&mut self, error: &watcher::Error) -> Result<(), Closed> {
        let code = status_code(error);
        if code == Some(GONE) {
            // The watch was too far behind. The watcher lists again: this is no failure.
            return Ok(());
        }
        let previous = self.failure.replace(WatchFailure { code, last: Instant::now() });
        if previous.is_none_or(|previous| previous.code != code) {
            let source = ProblemSource::Watch(self.spec.resource);
            let problem = problem(error, code, &self.spec);
            self.send(SourceEvent::Report(source, vec![problem])).await?;
        }
        if self.spec.optional && matches!(code, Some(NOT_FOUND | FORBIDDEN)) {
            self.report_synced().await?;
        }
        Ok(())
    }

    async fn report_recovery(&mut self) -> Result<(), Closed> {
        if self.failure.take().is_some() {
            let source = ProblemSource::Watch(self.spec.resource);
            self.send(SourceEvent::Report(source, Vec::new())).await?;
        }
        Ok(())
    }

    async fn send(&self, event: SourceEvent) -> Result<(), Closed> {
        self.events.send(event).await.map_err(|_| Closed)
    }
}

const UNAUTHORIZED: u16 = 401;
const FORBIDDEN: u16 = 403;
const NOT_FOUND: u16 = 404;
const GONE: u16 = 410;

/// Returns the HTTP status of an error response.
pub(super) fn status_code(error: &watcher::Error) -> Option<u16> {
    match error {
        watcher::Error::WatchError(status) => Some(status.code),
        watcher::Error::InitialListFailed(kube::Error::Api(status))
        | watcher::Error::WatchStartFailed(kube::Error::Api(status))
        | watcher::Error::WatchFailed(kube::Error::Api(status)) => Some(status.code),
        _ => None,
    }
}

fn problem<C, E>(error: &watcher::Error, code: Option<u16>, spec: &WatchSpec<C, E>) -> Problem {
    let WatchSpec { plural, right, .. } = spec;
    let verb = match error {
        watcher::Error::InitialListFailed(_) => "list",
        _ => "watch",
    };
    let (severity, remedy) = match code {
        Some(UNAUTHORIZED) => (Severity::Error, "renew the agent's credentials".to_owned()),
        Some(FORBIDDEN) => (
            Severity::Error,
            format!("grant the agent's account the verbs list and watch on {plural} ({right})"),
        ),
        Some(NOT_FOUND) => (
            Severity::Note,
            "upgrade Kubernetes if you need this resource; the agent runs without it".to_owned(),
        ),
        _ => (
            Severity::Error,
            "check that the API server is reachable; the agent retries and serves the objects it \
             has"
            .to_owned(),
        ),
    };
    let reason = match error {
        watcher::Error::WatchError(status) => status.message.clone(),
        watcher::Error::InitialListFailed(inner)
        | watcher::Error::WatchStartFailed(inner)
        | watcher::Error::WatchFailed(inner) => match inner {
            kube::Error::Api(status) => status.message.clone(),
            no_response => with_causes(no_response),
        },
        watcher::Error::NoResourceVersion => error.to_string(),
    };
    Problem {
        severity,
        location: None,
        object: format!("cannot {verb} {plural}").into(),
        field: "".into(),
        kind: ProblemKind::Api,
        reason: reason.into(),
        remedy: remedy.into(),
    }
}

/// Returns the message of an error and of its causes. A message that a previous one already
/// contains is not repeated.
pub fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let message = error.to_string();
        if !text.contains(&message) {
            text = format!("{text}: {message}");
        }
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use k8s_openapi::api::core::v1;
    use kube::core::{PartialObjectMeta, Status};
    use lb_model::Service;
    use serde_json::json;
    use tokio::sync::mpsc::Receiver;

    use super::*;
    use crate::convert;

    type Convert = fn(&v1::Service) -> Converted<Service>;
    type Make = fn(ObjectName, Option<Service>) -> SourceEvent;

    /// A watch of Services and the events that it sends.
    struct Case {
        watch: ObjectWatch<'static, Convert, Make>,
        events: Receiver<SourceEvent>,
    }

    impl Case {
        fn new(optional: bool) -> Self {
            let (sender, events) = mpsc::channel(64);
            let spec = WatchSpec {
                resource: WatchedResource::Services,
                plural: "services",
                singular: "Service",
                optional,
                right: RIGHTS_OF_ALL,
                convert: convert::service as Convert,
                make_event: (|name, service| SourceEvent::Service(name, service.map(Arc::new))) as Make,
            };
            // The watch borrows the sender: it has to live as long as the test.
            Self { watch: ObjectWatch::new(spec, Box::leak(Box::new(sender))), events }
        }

        /// Handles an item and returns one line for each event.
        async fn handle(&mut self, item: watcher::Result<watcher::Event<v1::Service>>) -> Vec<String> {
            assert!(self.watch.handle(item).await.is_ok());
            let mut lines = Vec::new();
            while let Ok(event) = self.events.try_recv() {
                lines.push(match event {
                    SourceEvent::Service(name, Some(service)) => {
                        format!("{name} = {:?}", service.cluster_ips)
                    }
                    SourceEvent::Service(name, None) => format!("{name} deleted"),
                    SourceEvent::Report(source, problems) => {
                        let problems: Vec<_> = problems.iter().map(ToString::to_string).collect();
                        format!("{source:?}: {problems:?}")
                            .replace("ObjectName(\"default/web\")", "default/web")
                    }
                    synced => format!("{synced:?}"),
                });
            }
            lines
        }

        async fn handle_all(&mut self, items: Vec<watcher::Event<v1::Service>>) -> Vec<String> {
            let mut lines = Vec::new();
            for item in items {
                lines.extend(self.handle(Ok(item)).await);
            }
            lines
        }
    }

    fn service(name: &str, ip: &str) -> v1::Service {
        let object = json!({
            "apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "namespace": "default"}, "spec": {"clusterIP": ip}
        });
        serde_json::from_value(object).unwrap()
    }

    fn refused(code: u16, message: &str) -> kube::Error {
        kube::Error::Api(Box::new(Status { code, message: message.to_owned(), ..Status::default() }))
    }

    use watcher::Event::{Apply, Delete, Init, InitApply, InitDone};

    #[test]
    fn the_backoff_grows_although_each_attempt_begins_with_an_item() {
        let mut backoff = WatchBackoff::default();
        for attempt in 0..6 {
            let pause = backoff.next().unwrap();
            assert!(pause >= Duration::from_millis(800 << attempt), "{attempt}: {pause:?}");
            assert!(pause <= Duration::from_secs(60), "{attempt}: {pause:?}");
            backoff.reset();
        }
    }

    #[tokio::test]
    async fn a_complete_list_deletes_the_objects_that_it_does_not_contain() {
        let mut case = Case::new(false);
        let listed =
            vec![Init, InitApply(service("a", "10.96.0.1")), InitApply(service("b", "10.96.0.2")), InitDone];
        assert_eq!(
            case.handle_all(listed).await,
            ["default/a = [10.96.0.1]", "default/b = [10.96.0.2]", "Synced(Services)"]
        );
        assert_eq!(
            case.handle_all(vec![Apply(service("c", "10.96.0.3")), Delete(service("c", "10.96.0.3"))]).await,
            ["default/c = [10.96.0.3]", "default/c deleted"]
        );
        // The list ends twice before it reaches `a`.
        assert_eq!(
            case.handle_all(vec![Init, InitApply(service("b", "10.96.0.2")), Init, Init]).await,
            ["default/b = [10.96.0.2]"]
        );
        assert_eq!(
            case.handle_all(vec![InitApply(service("b", "10.96.0.9")), InitDone]).await,
            ["default/b = [10.96.0.9]", "default/a deleted"]
        );
    }

    #[tokio::test]
    async fn a_failure_is_reported_when_it_begins_and_when_it_ends() {
        let mut case = Case::new(false);
        let forbidden = || watcher::Error::InitialListFailed(refused(403, "services is forbidden"));
        assert_eq!(
            case.handle(Err(forbidden())).await,
            ["Watch(Services): [\"cannot list services: services is forbidden: grant the \
                 agent's account the verbs list and watch on services (see the ClusterRole in \
                 deploy/)\"]"]
        );
        assert_eq!(case.handle_all(vec![Init]).await, [""; 0]);
        assert_eq!(case.handle(Err(forbidden())).await, [""; 0], "reported once, and nothing has synced");
        let lines = case.handle(Err(watcher::Error::InitialListFailed(refused(500, "etcd is away")))).await;
        assert!(
            lines.len() == 1 && lines[0].contains("etcd is away: check that the API server is reachable"),
            "{lines:?}"
        );
        assert_eq!(case.handle_all(vec![Init, InitDone]).await, ["Synced(Services)", "Watch(Services): []"]);
    }

    #[tokio::test]
    async fn a_watch_that_is_too_far_behind_is_no_failure() {
        let mut case = Case::new(false);
        let gone = Status { code: 410, ..Status::default() };
        assert_eq!(case.handle(Err(watcher::Error::WatchError(Box::new(gone)))).await, [""; 0]);
    }

    #[tokio::test]
    async fn an_optional_resource_does_not_delay_the_start() {
        let mut case = Case::new(true);
        let missing = || watcher::Error::InitialListFailed(refused(404, "not found"));
        let lines = case.handle(Err(missing())).await;
        assert!(lines.len() == 2 && lines[1] == "Synced(Services)", "{lines:?}");
        assert_eq!(case.handle(Err(missing())).await, [""; 0]);
    }

    /// A cluster can have a hundred thousand Pods without a weight.
    #[tokio::test]
    async fn nothing_is_kept_of_objects_without_a_value() {
        let pod = |name: &str, weight: &str| -> PartialObjectMeta<v1::Pod> {
            let annotations = json!({ weight: "3" });
            serde_json::from_value(json!({"metadata": {"name": name, "annotations": annotations}})).unwrap()
        };
        let (heavy, plain) =
            (|| pod("heavy", "lb.sluice.dev/weight"), |name| pod(name, "example.com/weight"));
        let (sender, mut events) = mpsc::channel(64);
        let mut watch = ObjectWatch::new(
            WatchSpec {
                resource: WatchedResource::Pods,
                plural: "pods",
                singular: "Pod",
                optional: true,
                right: RIGHTS_OF_ALL,
                convert: convert::pod_weight,
                make_event: SourceEvent::PodWeight,
            },
            &sender,
        );
        for item in [Init, InitApply(heavy()), InitApply(plain("a")), Apply(plain("b"))] {
            assert!(watch.handle(Ok(item)).await.is_ok());
        }
        assert_eq!((watch.listed.len(), watch.sent.len(), watch.faulty.len()), (1, 1, 0));
        // The Pod loses its weight while the list is read again.
        for item in [InitDone, Init, InitApply(heavy()), InitApply(plain("heavy")), InitDone] {
            assert!(watch.handle(Ok(item)).await.is_ok());
        }
        assert_eq!(watch.sent.len(), 0);
        let mut weights = Vec::new();
        while let Ok(event) = events.try_recv() {
            if let SourceEvent::PodWeight(name, weight) = event {
                weights.push((name.to_string(), weight.map(|pod| pod.weight.get())));
            }
        }
        let name = "default/heavy".to_owned();
        assert_eq!(weights, [(name.clone(), Some(3)), (name.clone(), Some(3)), (name, None)]);
    }

    #[tokio::test]
    async fn problems_are_resolved_when_the_object_is_corrected_or_deleted() {
        let mut case = Case::new(false);
        let wrong = || Apply(service("web", "10.96.0"));
        let lines = case.handle_all(vec![wrong()]).await;
        assert!(
            lines[0]
                .starts_with("Object(\"Service\", default/web): [\"Service default/web: spec.clusterIP: "),
            "{lines:?}"
        );
        assert_eq!(
            case.handle_all(vec![Apply(service("web", "10.96.0.1"))]).await,
            ["Object(\"Service\", default/web): []", "default/web = [10.96.0.1]"]
        );
        for end in [vec![Delete(service("web", "10.96.0"))], vec![Init, InitDone]] {
            case.handle_all(vec![wrong()]).await;
            let lines = case.handle_all(end).await;
            assert_eq!(lines[..2], ["Object(\"Service\", default/web): []", "default/web deleted"]);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_watch_without_items_after_failures_has_recovered() {
        let Case { watch: ObjectWatch { spec, events: sender, .. }, mut events } = Case::new(false);
        let failing =
            futures::stream::iter([Err(watcher::Error::WatchStartFailed(refused(503, "starting")))]);
        tokio::spawn(run_watch(failing.chain(futures::stream::pending()), spec, sender));
        assert!(matches!(events.recv().await, Some(SourceEvent::Report(_, problems)) if problems.len() == 1));
        assert!(matches!(events.recv().await, Some(SourceEvent::Report(_, problems)) if problems.is_empty()));
    }
}
