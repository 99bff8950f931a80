//! One watch, kept up for ever.

use std::collections::HashSet;
use std::fmt::Debug;

use futures::StreamExt;
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Resource};
use serde::de::DeserializeOwned;
use tokio::sync::mpsc;

use super::super::{Event, Origin, Part};
use crate::model::{Converted, ObjectName, Problem, Severity};

/// What [`follow`] must know of a kind of object.
pub(super) struct Kind<C, E> {
    pub part: Part,
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

/// Lists and watches until nobody listens. After each new list (a restart, a 410, a lost connection) what it lacks is
/// deleted, and nothing before it is complete.
pub(super) async fn follow<K, T, C, E>(
    api: Api<K>,
    config: watcher::Config,
    kind: Kind<C, E>,
    events: &mpsc::Sender<Event>,
) where
    K: Resource + Clone + DeserializeOwned + Debug + Send + 'static,
    C: Fn(&K) -> Converted<T>,
    E: Fn(ObjectName, Option<T>) -> Event,
{
    let mut stream = std::pin::pin!(watcher(api, config).default_backoff());
    let mut follower = Follower::new(kind, events);
    loop {
        let item = tokio::select! {
            () = events.closed() => return,
            item = stream.next() => item,
        };
        // The stream has no end of its own.
        let Some(item) = item else { return };
        if follower.take(item).await.is_err() {
            return;
        }
    }
}

struct Follower<'a, C, E> {
    kind: Kind<C, E>,
    events: &'a mpsc::Sender<Event>,
    /// The objects that the planner was told of.
    known: HashSet<ObjectName>,
    /// Those of a list that is under way.
    listed: HashSet<ObjectName>,
    /// The objects that something was reported of.
    reported: HashSet<ObjectName>,
    /// What was reported of the watch itself.
    failure: Option<Problem>,
    synced: bool,
}

impl<'a, C, E> Follower<'a, C, E> {
    fn new(kind: Kind<C, E>, events: &'a mpsc::Sender<Event>) -> Self {
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
        E: Fn(ObjectName, Option<T>) -> Event,
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
                let gone: Vec<ObjectName> = self.known.difference(&listed).cloned().collect();
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
        if self.failure.take().is_some() {
            tracing::info!(resource = self.kind.plural, "the API server answers again");
            self.send(Event::Report(Origin::Watch(self.kind.plural), Vec::new())).await?;
        }
        Ok(())
    }

    async fn apply<K, T>(&mut self, object: K) -> Result<ObjectName, Closed>
    where
        C: Fn(&K) -> Converted<T>,
        E: Fn(ObjectName, Option<T>) -> Event,
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
        E: Fn(ObjectName, Option<T>) -> Event,
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
        self.send(Event::Report(Origin::Object(self.kind.singular, name.clone()), problems)).await
    }

    async fn sync(&mut self) -> Result<(), Closed> {
        if !self.synced {
            self.synced = true;
            self.send(Event::Synced(self.kind.part)).await?;
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
        let problem = failure(error, code, self.kind.plural);
        if self.failure.as_ref() != Some(&problem) {
            self.failure = Some(problem.clone());
            self.send(Event::Report(Origin::Watch(self.kind.plural), vec![problem])).await?;
        }
        if self.kind.optional && matches!(code, Some(NOT_FOUND | FORBIDDEN)) {
            self.sync().await?;
        }
        Ok(())
    }

    async fn send(&self, event: Event) -> Result<(), Closed> {
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

fn failure(error: &watcher::Error, code: Option<u16>, plural: &str) -> Problem {
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
        watcher::Error::InitialListFailed(kube::Error::Api(status))
        | watcher::Error::WatchStartFailed(kube::Error::Api(status))
        | watcher::Error::WatchFailed(kube::Error::Api(status)) => status.message.clone(),
        other => with_causes(other),
    };
    Problem {
        severity,
        place: None,
        object: format!("cannot {verb} {plural}").into(),
        field: "".into(),
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
