//! One watch, kept up for ever.

use std::collections::HashSet;
use std::time::Duration;

use futures::{Stream, StreamExt};
use kube::runtime::utils::Backoff;
use kube::runtime::watcher;
use lb_model::{ObjectName, Problem, ProblemKind, ProblemSource, Severity, SourceEvent, WatchedResource};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};

use crate::convert::Converted;

/// What [`follow`] must know of a kind of object.
pub(super) struct WatchSpec<C, E> {
    pub resource: WatchedResource,
    /// As RBAC rules name it, for messages.
    pub plural: &'static str,
    pub singular: &'static str,
    /// The cluster may lack it, or refuse it: the agent starts all the same.
    pub optional: bool,
    pub convert: C,
    pub event: E,
}

/// The receiver of the events is gone.
struct Closed;

/// Pauses after failed attempts, as client-go has them: from 0.8 s, each twice as long, up to 30 s and as much of jitter; from
/// 0.8 s again after two minutes without a failure. `default_backoff()` would begin anew with every item of the stream, and
/// every attempt to list has one before it fails: each agent would ask an API server that is down once a second.
#[derive(Default)]
pub(super) struct WatchBackoff(watcher::DefaultBackoff);

impl Iterator for WatchBackoff {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        self.0.next()
    }
}

impl Backoff for WatchBackoff {
    /// Called for every item. The two minutes are counted in `next`.
    fn reset(&mut self) {}
}

/// A watch that is taken up again where it broke off says nothing until an object changes. But a failed attempt follows
/// upon another after at most 30 seconds and a jitter ([`WatchBackoff`]) and 30 seconds in which no connection
/// came about: when there was none for longer, one succeeded.
const SILENCE_MEANS_RECOVERED: Duration = Duration::from_secs(150);

/// What is wrong with the watch itself.
struct WatchFailure {
    /// HTTP status; none if there was no answer.
    code: Option<u16>,
    /// When it was seen last.
    last: Instant,
}

/// Follows a watch until nobody listens. After each new list (a restart, a 410, a lost connection) what it lacks is
/// deleted, and nothing before it is complete.
pub(super) async fn follow<K, T, C, E>(
    stream: impl Stream<Item = watcher::Result<watcher::Event<K>>>,
    kind: WatchSpec<C, E>,
    events: &mpsc::Sender<SourceEvent>,
) where
    C: Fn(&K) -> Converted<T>,
    E: Fn(ObjectName, Option<T>) -> SourceEvent,
{
    let mut stream = std::pin::pin!(stream);
    let mut follower = ObjectWatch::new(kind, events);
    loop {
        let recovered = follower.failure.as_ref().map(|failure| failure.last + SILENCE_MEANS_RECOVERED);
        let done = tokio::select! {
            () = events.closed() => Err(Closed),
            item = stream.next() => match item {
                Some(item) => follower.take(item).await,
                // The stream has no end of its own.
                None => Err(Closed),
            },
            () = sleep_until(recovered.unwrap_or_else(Instant::now)), if recovered.is_some() => {
                follower.recover().await
            }
        };
        if done.is_err() {
            return;
        }
    }
}

struct ObjectWatch<'a, C, E> {
    kind: WatchSpec<C, E>,
    events: &'a mpsc::Sender<SourceEvent>,
    /// The objects that the planner was told of.
    known: HashSet<ObjectName>,
    /// Those of a list that is under way.
    listed: HashSet<ObjectName>,
    /// The objects that something was reported of.
    reported: HashSet<ObjectName>,
    /// What was reported of the watch itself.
    failure: Option<WatchFailure>,
    synced: bool,
}

impl<'a, C, E> ObjectWatch<'a, C, E> {
    fn new(kind: WatchSpec<C, E>, events: &'a mpsc::Sender<SourceEvent>) -> Self {
        Self {
            kind,
            events,
            known: HashSet::new(),
            listed: HashSet::new(),
            reported: HashSet::new(),
            failure: None,
            synced: false,
        }
    }

    async fn take<K, T>(&mut self, item: watcher::Result<watcher::Event<K>>) -> Result<(), Closed>
    where
        C: Fn(&K) -> Converted<T>,
        E: Fn(ObjectName, Option<T>) -> SourceEvent,
    {
        let event = match item {
            Ok(event) => event,
            Err(error) => return self.fail(&error).await,
        };
        match event {
            // Only the attempt to list begins.
            watcher::Event::Init => {
                self.listed = HashSet::new();
                return Ok(());
            }
            watcher::Event::InitApply(object) => {
                let name = self.apply(object).await?;
                self.listed.insert(name);
            }
            watcher::Event::InitDone => {
                let listed = std::mem::take(&mut self.listed);
                let told = self.known.union(&self.reported);
                let gone: Vec<ObjectName> = told.filter(|name| !listed.contains(name)).cloned().collect();
                for name in gone {
                    self.delete(name).await?;
                }
                self.known.shrink_to_fit();
                self.sync().await?;
            }
            watcher::Event::Apply(object) => drop(self.apply(object).await?),
            watcher::Event::Delete(object) => {
                let name = (self.kind.convert)(&object).name;
                self.delete(name).await?;
            }
        }
        self.recover().await
    }

    async fn recover(&mut self) -> Result<(), Closed> {
        if self.failure.take().is_some() {
            self.send(SourceEvent::Report(ProblemSource::Watch(self.kind.plural), Vec::new())).await?;
        }
        Ok(())
    }

    async fn apply<K, T>(&mut self, object: K) -> Result<ObjectName, Closed>
    where
        C: Fn(&K) -> Converted<T>,
        E: Fn(ObjectName, Option<T>) -> SourceEvent,
    {
        let Converted { name, value, problems } = (self.kind.convert)(&object);
        drop(object);
        self.report(&name, problems).await?;
        if value.is_some() || self.known.contains(&name) {
            self.known.insert(name.clone());
            self.send((self.kind.event)(name.clone(), value)).await?;
        }
        Ok(name)
    }

    async fn delete<T>(&mut self, name: ObjectName) -> Result<(), Closed>
    where
        E: Fn(ObjectName, Option<T>) -> SourceEvent,
    {
        self.report(&name, Vec::new()).await?;
        if self.known.remove(&name) {
            self.send((self.kind.event)(name, None)).await?;
        }
        Ok(())
    }

    async fn report(&mut self, name: &ObjectName, problems: Vec<Problem>) -> Result<(), Closed> {
        let had_problems = if problems.is_empty() {
            self.reported.remove(name)
        } else {
            !self.reported.insert(name.clone())
        };
        if problems.is_empty() && !had_problems {
            return Ok(());
        }
        self.send(SourceEvent::Report(ProblemSource::Object(self.kind.singular, name.clone()), problems))
            .await
    }

    async fn sync(&mut self) -> Result<(), Closed> {
        if !self.synced {
            self.synced = true;
            self.send(SourceEvent::Synced(self.kind.resource)).await?;
        }
        Ok(())
    }

    /// Reports a failure when it begins or becomes another one, not at each attempt.
    async fn fail(&mut self, error: &watcher::Error) -> Result<(), Closed> {
        let code = status_code(error);
        if code == Some(GONE) {
            // The watch was too far behind: the watcher lists anew.
            return Ok(());
        }
        let known = self.failure.replace(WatchFailure { code, last: Instant::now() });
        if known.is_none_or(|known| known.code != code) {
            let problem = describe(error, code, self.kind.plural);
            self.send(SourceEvent::Report(ProblemSource::Watch(self.kind.plural), vec![problem])).await?;
        }
        if self.kind.optional && matches!(code, Some(NOT_FOUND | FORBIDDEN)) {
            self.sync().await?;
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

fn status_code(error: &watcher::Error) -> Option<u16> {
    match error {
        watcher::Error::WatchError(status) => Some(status.code),
        watcher::Error::InitialListFailed(kube::Error::Api(status))
        | watcher::Error::WatchStartFailed(kube::Error::Api(status))
        | watcher::Error::WatchFailed(kube::Error::Api(status)) => Some(status.code),
        _ => None,
    }
}

fn describe(error: &watcher::Error, code: Option<u16>, plural: &str) -> Problem {
    let verb = match error {
        watcher::Error::InitialListFailed(_) => "list",
        _ => "watch",
    };
    let (severity, remedy) = match code {
        Some(UNAUTHORIZED) => (Severity::Error, "renew the agent's credentials".to_owned()),
        Some(FORBIDDEN) => (
            Severity::Error,
            format!(
                "allow the agent's account the verbs list and watch on {plural} (deploy/ has the ClusterRole)"
            ),
        ),
        Some(NOT_FOUND) => {
            (Severity::Note, "upgrade Kubernetes to have it; the agent goes on without".to_owned())
        }
        _ => (
            Severity::Error,
            "check that the API server is reachable; the agent keeps trying, and serves what it knows"
                .to_owned(),
        ),
    };
    let reason = match error {
        watcher::Error::WatchError(status) => status.message.clone(),
        watcher::Error::InitialListFailed(inner)
        | watcher::Error::WatchStartFailed(inner)
        | watcher::Error::WatchFailed(inner) => match inner {
            kube::Error::Api(status) => status.message.clone(),
            other => with_causes(other),
        },
        other @ watcher::Error::NoResourceVersion => other.to_string(),
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

/// An error with what it was caused by. Layers that repeat the message of the one below are said once.
fn with_causes(error: &dyn std::error::Error) -> String {
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
    use kube::core::Status;
    use lb_model::Service;
    use serde_json::json;
    use tokio::sync::mpsc::Receiver;

    use super::*;
    use crate::convert;

    type Convert = fn(&v1::Service) -> Converted<Service>;
    type Make = fn(ObjectName, Option<Service>) -> SourceEvent;

    /// A follower of Services, and what it sends.
    struct Case {
        follower: ObjectWatch<'static, Convert, Make>,
        events: Receiver<SourceEvent>,
    }

    impl Case {
        fn new(optional: bool) -> Self {
            let (sender, events) = mpsc::channel(64);
            let kind = WatchSpec {
                resource: WatchedResource::Services,
                plural: "services",
                singular: "Service",
                optional,
                convert: convert::service as Convert,
                event: (|name, service| SourceEvent::Service(name, service.map(Arc::new))) as Make,
            };
            // Lives as long as the test process: the follower borrows its sender.
            Self { follower: ObjectWatch::new(kind, Box::leak(Box::new(sender))), events }
        }

        async fn take(&mut self, item: watcher::Result<watcher::Event<v1::Service>>) -> Vec<String> {
            assert!(self.follower.take(item).await.is_ok());
            let mut told = Vec::new();
            while let Ok(event) = self.events.try_recv() {
                told.push(match event {
                    SourceEvent::Service(name, Some(service)) => {
                        format!("{name} = {:?}", service.cluster_ips)
                    }
                    SourceEvent::Service(name, None) => format!("{name} is gone"),
                    SourceEvent::Report(origin, problems) => {
                        let problems: Vec<_> = problems.iter().map(ToString::to_string).collect();
                        format!("{origin:?}: {problems:?}")
                            .replace("ObjectName(\"default/web\")", "default/web")
                    }
                    other => format!("{other:?}"),
                });
            }
            told
        }

        async fn all(&mut self, items: Vec<watcher::Event<v1::Service>>) -> Vec<String> {
            let mut told = Vec::new();
            for item in items {
                told.extend(self.take(Ok(item)).await);
            }
            told
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
    fn pauses_grow_also_when_each_attempt_begins_with_an_item() {
        let mut pauses = WatchBackoff::default();
        for attempt in 0..6 {
            let pause = pauses.next().unwrap();
            assert!(pause >= Duration::from_millis(800 << attempt), "{attempt}: {pause:?}");
            assert!(pause <= Duration::from_secs(60), "{attempt}: {pause:?}");
            pauses.reset();
        }
    }

    #[tokio::test]
    async fn a_new_list_deletes_only_what_it_lacks_and_only_when_it_is_complete() {
        let mut case = Case::new(false);
        let listed =
            vec![Init, InitApply(service("a", "10.96.0.1")), InitApply(service("b", "10.96.0.2")), InitDone];
        assert_eq!(
            case.all(listed).await,
            ["default/a = [10.96.0.1]", "default/b = [10.96.0.2]", "Synced(Services)"]
        );
        assert_eq!(
            case.all(vec![Apply(service("c", "10.96.0.3")), Delete(service("c", "10.96.0.3"))]).await,
            ["default/c = [10.96.0.3]", "default/c is gone"]
        );
        // The list breaks off, twice, before it shows `a`.
        assert_eq!(
            case.all(vec![Init, InitApply(service("b", "10.96.0.2")), Init, Init]).await,
            ["default/b = [10.96.0.2]"]
        );
        assert_eq!(
            case.all(vec![InitApply(service("b", "10.96.0.9")), InitDone]).await,
            ["default/b = [10.96.0.9]", "default/a is gone"]
        );
    }

    #[tokio::test]
    async fn a_failure_is_reported_when_it_begins_and_when_it_ends() {
        let mut case = Case::new(false);
        let forbidden = || watcher::Error::InitialListFailed(refused(403, "services is forbidden"));
        assert_eq!(
            case.take(Err(forbidden())).await,
            [
                "Watch(\"services\"): [\"cannot list services: services is forbidden: allow the agent's account the verbs \
             list and watch on services (deploy/ has the ClusterRole)\"]"
            ]
        );
        assert_eq!(case.all(vec![Init]).await, [""; 0]);
        assert_eq!(case.take(Err(forbidden())).await, [""; 0], "once is enough, and nothing has synced");
        let told = case.take(Err(watcher::Error::InitialListFailed(refused(500, "etcd is away")))).await;
        assert!(
            told.len() == 1 && told[0].contains("etcd is away: check that the API server is reachable"),
            "{told:?}"
        );
        assert_eq!(case.all(vec![Init, InitDone]).await, ["Synced(Services)", "Watch(\"services\"): []"]);
    }

    #[tokio::test]
    async fn a_watch_that_fell_behind_is_no_failure() {
        let mut case = Case::new(false);
        let gone = Status { code: 410, ..Status::default() };
        assert_eq!(case.take(Err(watcher::Error::WatchError(Box::new(gone)))).await, [""; 0]);
    }

    #[tokio::test]
    async fn a_kind_that_the_cluster_may_lack_does_not_hold_up_the_start() {
        let mut case = Case::new(true);
        let missing = || watcher::Error::InitialListFailed(refused(404, "not found"));
        let told = case.take(Err(missing())).await;
        assert!(told.len() == 2 && told[1] == "Synced(Services)", "{told:?}");
        assert_eq!(case.take(Err(missing())).await, [""; 0]);
    }

    #[tokio::test]
    async fn problems_of_an_object_end_with_them_or_with_it() {
        let mut case = Case::new(false);
        let wrong = || Apply(service("web", "10.96.0"));
        let told = case.all(vec![wrong()]).await;
        assert!(
            told[0].starts_with("Object(\"Service\", default/web): [\"Service default/web: spec.clusterIP: "),
            "{told:?}"
        );
        assert_eq!(
            case.all(vec![Apply(service("web", "10.96.0.1"))]).await,
            ["Object(\"Service\", default/web): []", "default/web = [10.96.0.1]"]
        );
        for end in [vec![Delete(service("web", "10.96.0"))], vec![Init, InitDone]] {
            case.all(vec![wrong()]).await;
            let told = case.all(end).await;
            assert_eq!(told[..2], ["Object(\"Service\", default/web): []", "default/web is gone"]);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_watch_that_is_silent_after_failures_has_recovered() {
        let Case { follower: ObjectWatch { kind, events: sender, .. }, mut events } = Case::new(false);
        let failing =
            futures::stream::iter([Err(watcher::Error::WatchStartFailed(refused(503, "starting")))]);
        tokio::spawn(follow(failing.chain(futures::stream::pending()), kind, sender));
        assert!(matches!(events.recv().await, Some(SourceEvent::Report(_, problems)) if problems.len() == 1));
        assert!(matches!(events.recv().await, Some(SourceEvent::Report(_, problems)) if problems.is_empty()));
    }
}
