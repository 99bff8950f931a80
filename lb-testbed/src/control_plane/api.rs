//! A blocking client of the API server. It does what `kubectl apply`, `kubectl delete` and
//! `kubectl auth can-i` do.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::authentication::v1::TokenRequest;
use k8s_openapi::api::authorization::v1::{
    ResourceAttributes, SelfSubjectAccessReview, SelfSubjectAccessReviewSpec,
};
use k8s_openapi::api::core::v1::ServiceAccount;
use k8s_openapi::api::events::v1::Event;
use kube::api::{
    Api as KubeApi, DeleteParams, DynamicObject, ListParams, Patch, PatchParams, PostParams,
    ValidationDirective,
};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::core::GroupVersionKind;
use kube::discovery::{Scope, pinned_kind};
use kube::{Client, Config};
use serde_json::{Value, json};
use tokio::task::JoinSet;

use crate::place::Place;

/// Field manager of the applied objects.
const FIELD_MANAGER: &str = "testbed";
/// Time limit for connecting and for each read. No working server takes this long.
const LIMIT: Duration = Duration::from_secs(30);

/// Sends requests to the API server as the user of a kubeconfig, from the network namespace of a
/// place.
#[derive(Debug)]
pub struct Api {
    place: Place,
    kubeconfig: Kubeconfig,
}

impl Api {
    pub(super) fn new(place: &Place, kubeconfig: &Path) -> Result<Self> {
        let kubeconfig = Kubeconfig::read_from(kubeconfig)
            .with_context(|| format!("read the kubeconfig {}", kubeconfig.display()))?;
        Ok(Self { place: place.clone(), kubeconfig })
    }

    /// Creates or changes an object with server-side apply, including its status.
    pub fn apply(&self, object: &Value) -> Result<()> {
        self.patch(object, false)
    }

    /// Returns the error that [`Self::apply`] would return. Changes nothing (dry run).
    pub fn check(&self, object: &Value) -> Result<()> {
        self.patch(object, true)
    }

    /// Changes an object by a strategic merge patch, as `kubectl patch` does.
    pub fn merge(&self, patch: &Value) -> Result<()> {
        self.call(async |client| {
            let (api, object) = locate(client, patch).await?;
            api.patch(&name_of(&object)?, &PatchParams::default(), &Patch::Strategic(&object)).await?;
            Ok(())
        })
        .with_context(|| format!("patch {}", describe(patch)))
    }

    /// Returns the minor version of the API server: 37 for Kubernetes 1.37.
    pub fn minor_version(&self) -> Result<u32> {
        let version = self.call(async |client| Ok(client.apiserver_version().await?))?;
        version.minor.parse().with_context(|| format!("the minor version is {:?}", version.minor))
    }

    /// Deletes an object. Returns an error if it does not exist.
    pub fn delete(&self, object: &Value) -> Result<()> {
        self.call(async |client| {
            let (api, object) = locate(client, object).await?;
            api.delete(&name_of(&object)?, &DeleteParams::default()).await?;
            Ok(())
        })
        .with_context(|| format!("delete {}", describe(object)))
    }

    /// Returns the current form of an object, which is given by its kind and name.
    pub fn get(&self, object: &Value) -> Result<Value> {
        self.call(async |client| {
            let (api, object) = locate(client, object).await?;
            Ok(serde_json::to_value(api.get(&name_of(&object)?).await?)?)
        })
        .with_context(|| format!("get {}", describe(object)))
    }

    /// Returns whether the user has the right to `verb` on a resource of an API group.
    pub fn may(&self, verb: &str, group: &str, resource: &str) -> Result<bool> {
        let attributes = ResourceAttributes {
            verb: Some(verb.to_owned()),
            group: Some(group.to_owned()),
            resource: Some(resource.to_owned()),
            ..ResourceAttributes::default()
        };
        let review = SelfSubjectAccessReview {
            spec: SelfSubjectAccessReviewSpec { resource_attributes: Some(attributes), ..Default::default() },
            ..Default::default()
        };
        let answer = self
            .call(async |client| Ok(KubeApi::all(client).create(&PostParams::default(), &review).await?))?;
        Ok(answer.status.context("the access review has no result")?.allowed)
    }

    /// Returns the Events about an object, which is given by its kind and name.
    pub fn events(&self, namespace: &str, kind: &str, name: &str) -> Result<Vec<Event>> {
        let fields = format!("regarding.kind={kind},regarding.name={name}");
        let list = self.call(async |client| {
            let events = KubeApi::<Event>::namespaced(client, namespace);
            Ok(events.list(&ListParams::default().fields(&fields)).await?)
        });
        Ok(list.with_context(|| format!("list the Events of {kind} {namespace}/{name}"))?.items)
    }

    /// Requests a new token of a service account.
    pub(super) fn token(&self, namespace: &str, name: &str) -> Result<String> {
        let answer = self.call(async |client| {
            let accounts = KubeApi::<ServiceAccount>::namespaced(client, namespace);
            let request = TokenRequest::default();
            Ok(accounts.create_token_request(name, &PostParams::default(), &request).await?)
        });
        let answer = answer.with_context(|| format!("get a token for {namespace}/{name}"))?;
        answer.status.and_then(|status| status.token).context("the answer has no token")
    }

    pub(super) fn is_ready(&self) -> Result<()> {
        self.call(async |client| {
            let request = hyper::Request::get("/readyz").body(Vec::new())?;
            let answer = client.request_text(request).await?;
            ensure!(answer == "ok", "/readyz: {answer}");
            Ok(())
        })
    }

    fn patch(&self, object: &Value, dry_run: bool) -> Result<()> {
        let params = PatchParams {
            dry_run,
            field_manager: Some(FIELD_MANAGER.to_owned()),
            // The server refuses an unknown field and names it, instead of dropping it.
            field_validation: Some(ValidationDirective::Strict),
            ..PatchParams::default()
        };
        self.call(async |client| {
            let (api, mut object) = locate(client, object).await?;
            let name = name_of(&object)?;
            let status = object.data.as_object_mut().and_then(|fields| fields.remove("status"));
            api.patch(&name, &params, &Patch::Apply(&object)).await?;
            if let Some(status) = status {
                // A merge patch: server-side apply refuses two addresses of one type, which every
                // dual-stack Node has (https://github.com/kubernetes/kubernetes/issues/121896).
                let params = PatchParams { dry_run, ..PatchParams::default() };
                api.patch_status(&name, &params, &Patch::Merge(json!({ "status": status }))).await?;
            }
            Ok(())
        })
        .with_context(|| format!("apply {}", describe(object)))
    }

    /// Creates many objects of one kind in one namespace, with this number of requests at a time.
    pub fn create_all(&self, objects: Vec<Value>, at_once: usize) -> Result<()> {
        let Some(first) = objects.first().cloned() else { return Ok(()) };
        let what = format!("create {} objects like {}", objects.len(), describe(&first));
        self.call(async |client| {
            let (api, _) = locate(client, &first).await?;
            let mut objects = objects.into_iter();
            let mut requests = JoinSet::new();
            loop {
                while requests.len() < at_once
                    && let Some(object) = objects.next()
                {
                    let (api, object) = (api.clone(), serde_json::from_value(object)?);
                    requests.spawn(async move { api.create(&PostParams::default(), &object).await });
                }
                let Some(created) = requests.join_next().await else { return Ok(()) };
                created??;
            }
        })
        .context(what)
    }

    /// Runs `work` on one thread with a new client. Its connection ends with the call, so the next
    /// call also works if the server has restarted in between.
    pub fn call<T: Send>(&self, work: impl AsyncFnOnce(Client) -> Result<T> + Send) -> Result<T> {
        self.place.inside(|| {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(async {
                let options = KubeConfigOptions::default();
                let mut config = Config::from_custom_kubeconfig(self.kubeconfig.clone(), &options).await?;
                config.connect_timeout = Some(LIMIT);
                config.read_timeout = Some(LIMIT);
                work(Client::try_from(config)?).await
            })
        })?
    }
}

/// Returns the API for the kind and namespace of an object, and the object as kube's type.
async fn locate(client: Client, object: &Value) -> Result<(KubeApi<DynamicObject>, DynamicObject)> {
    let object: DynamicObject = serde_json::from_value(object.clone()).context("not a Kubernetes object")?;
    let types = object.types.as_ref().context("the object has no apiVersion and kind")?;
    let kind = GroupVersionKind::try_from(types)?;
    let (resource, capabilities) = pinned_kind(&client, &kind).await?;
    let api = match (capabilities.scope, object.metadata.namespace.as_deref()) {
        (Scope::Cluster, _) => KubeApi::all_with(client, &resource),
        (Scope::Namespaced, Some(namespace)) => KubeApi::namespaced_with(client, namespace, &resource),
        (Scope::Namespaced, None) => KubeApi::default_namespaced_with(client, &resource),
    };
    Ok((api, object))
}

fn name_of(object: &DynamicObject) -> Result<String> {
    object.metadata.name.clone().context("the object has no name")
}

fn describe(object: &Value) -> String {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    format!("{} {}", text(&object["kind"]), text(&object["metadata"]["name"]))
}
