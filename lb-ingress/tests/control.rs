//! From a folder of manifests to the state of a proxy.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use lb_ingress::control::{Controller, Outcome};
use lb_ingress::ingress::Settings;
use lb_ingress::observe::{AccessRecord, Observer};
use lb_ingress::proxy::{Gateway, GatewaySettings};
use lb_ingress::routes::policy::{BasicAuth, BasicAuthForm};
use lb_ingress::routes::{BackendRef, Origin};
use lb_ingress::tls::{CertificateStore, self_signed};
use lb_ingress::users::Verdict;
use lb_model::{ObjectName, SourceEvent, WatchedResource};
use lb_objects::ObjectSelection;
use lb_objects::manifests::ManifestFolder;
use prometheus_client::encoding::text::encode;
use prometheus_client::registry::Registry;

const INGRESS: &str = "
apiVersion: networking.k8s.io/v1
kind: Ingress
metadata: {name: HOST, namespace: shop}
spec:
  ingressClassName: sluice
  rules:
  - host: HOST.example
    http:
      paths:
      - {path: /, pathType: Prefix, backend: {service: {name: web, port: {number: 80}}}}
";

const SERVICE: &str = "
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec: {clusterIP: 10.96.0.10, ports: [{name: http, port: 80}]}
";

fn slice(addresses: &[&str]) -> String {
    let endpoints: Vec<_> = addresses.iter().map(|address| format!("{{addresses: [{address}]}}")).collect();
    format!(
        "
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {{name: web-1, namespace: shop, labels: {{kubernetes.io/service-name: web}}}}
addressType: IPv4
ports: [{{name: http, port: 8080}}]
endpoints: [{}]
",
        endpoints.join(", ")
    )
}

struct World {
    dir: tempfile::TempDir,
    folder: ManifestFolder,
    gateway: Arc<Gateway>,
    controller: Controller,
}

impl World {
    fn new() -> Self {
        Self::with(Settings::default())
    }

    fn with(settings: Settings) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let selection = ObjectSelection::of_ingresses("node-1").with_pod_weights(settings.pod_weights);
        let folder = ManifestFolder::new(dir.path().to_owned(), selection);
        let certificates = CertificateStore::new(self_signed().unwrap(), None);
        let gateway = Gateway::new(GatewaySettings::default(), certificates, Observer::default());
        let gateway = Arc::new(gateway.unwrap());
        let controller = Controller::new(gateway.clone(), settings);
        Self { dir, folder, gateway, controller }
    }

    fn path(&self, file: &str) -> std::path::PathBuf {
        Path::new(self.dir.path()).join(file)
    }

    fn write(&self, file: &str, text: &str) {
        std::fs::write(self.path(file), text).unwrap();
    }

    fn scan(&mut self) -> Outcome {
        let events = self.folder.scan().unwrap();
        self.controller.apply(events)
    }

    fn addresses(&self) -> Option<Vec<String>> {
        let backend = BackendRef { service: ObjectName::new("shop", "web"), port: "http".into() };
        let set = self.gateway.endpoints.of(&backend)?;
        Some(set.endpoints().iter().map(|endpoint| endpoint.address.to_string()).collect())
    }

    fn hosts(&self) -> usize {
        self.gateway.table.load().hosts().count()
    }
}

/// A Pod with weight 0 gets no requests, if Pods have weights.
#[test]
fn pods_with_weight_0_are_left_out() {
    let slice = slice(&["10.0.0.1", "10.0.0.2"]);
    let slice = slice.replace("[10.0.0.1]", "[10.0.0.1], targetRef: {kind: Pod, name: web-a}");
    let pod = |weight: &str| {
        format!(
            "{{apiVersion: v1, kind: Pod, metadata: {{name: web-a, namespace: shop, annotations: \
             {{lb.sluice.dev/weight: '{weight}'}}}}}}"
        )
    };
    for (pod_weights, expected) in [(false, 2), (true, 1)] {
        let mut world = World::with(Settings { pod_weights, ..Settings::default() });
        world.write("web.yaml", &INGRESS.replace("HOST", "a"));
        world.write("service.yaml", SERVICE);
        world.write("slice.yaml", &slice);
        world.write("pod.yaml", &pod("0"));
        assert!(world.scan().ready);
        assert_eq!(world.addresses().map(|list| list.len()), Some(expected));
        world.write("pod.yaml", &pod("3"));
        world.scan();
        assert_eq!(world.addresses().map(|list| list.len()), Some(2));
        world.write("pod.yaml", &pod("0"));
        world.scan();
        assert_eq!(world.addresses().map(|list| list.len()), Some(expected));
    }
}

/// A pod with addresses of both families is one endpoint: otherwise both tries of a request might
/// go to one dead pod.
#[test]
fn pods_of_both_families_are_one_endpoint() {
    let mut world = World::new();
    world.write("web.yaml", &INGRESS.replace("HOST", "a"));
    world.write("service.yaml", SERVICE);
    let v6 = slice(&["'fd00::1'", "'fd00::2'"]).replace("IPv4", "IPv6").replace("web-1", "web-2");
    world.write("slice6.yaml", &v6);
    assert!(world.scan().ready);
    assert_eq!(world.addresses(), Some(vec!["[fd00::1]:8080".into(), "[fd00::2]:8080".into()]));

    world.write("slice.yaml", &slice(&["10.0.0.1", "10.0.0.2"]));
    world.scan();
    assert_eq!(world.addresses(), Some(vec!["10.0.0.1:8080".into(), "10.0.0.2:8080".into()]));
}

#[test]
fn routes_endpoints_and_certificates_follow_the_manifests() {
    let mut world = World::new();
    world.write("web.yaml", &INGRESS.replace("HOST", "a"));
    world.write("service.yaml", SERVICE);
    world.write("slice.yaml", &slice(&["10.0.0.1", "10.0.0.2"]));
    assert!(world.scan().ready);
    assert_eq!(
        (world.hosts(), world.addresses()),
        (1, Some(vec!["10.0.0.1:8080".into(), "10.0.0.2:8080".into()]))
    );

    // Endpoints swap without a new table.
    let table = world.gateway.table.load_full();
    world.write("slice.yaml", &slice(&["10.0.0.2"]));
    world.scan();
    assert_eq!(world.addresses(), Some(vec!["10.0.0.2:8080".into()]));
    assert!(Arc::ptr_eq(&table, &world.gateway.table.load_full()));

    // Another Ingress leaves the first host as it is.
    world.write("b.yaml", &INGRESS.replace("HOST", "b"));
    world.scan();
    let changed = world.gateway.table.load_full();
    assert!(Arc::ptr_eq(table.host("a.example").unwrap(), changed.host("a.example").unwrap()));
    assert!(changed.host("b.example").is_some());

    // The last Ingress of a backend removes its endpoints.
    std::fs::remove_file(world.path("web.yaml")).unwrap();
    world.scan();
    assert_eq!((world.hosts(), world.addresses().is_some()), (1, true));
    std::fs::remove_file(world.path("b.yaml")).unwrap();
    world.scan();
    assert_eq!((world.hosts(), world.addresses()), (0, None));
}

#[test]
fn problems_name_the_file_of_their_object() {
    let mut world = World::new();
    for class in ["sluice", "missing"] {
        world.write("a.yaml", &INGRESS.replace("HOST", "a").replace("sluice", class));
        let raised = world.scan().raised;
        assert_eq!(raised.len(), 1, "{raised:?}");
        assert!(raised[0].to_string().contains("a.yaml: document 1"), "{}", raised[0]);
    }
}

#[test]
fn the_metrics_of_an_ingress_end_with_it() {
    let mut world = World::new();
    world.write("a.yaml", &INGRESS.replace("HOST", "a"));
    world.scan();
    let record = AccessRecord {
        client: "192.0.2.7".parse().unwrap(),
        tls: false,
        status: 200,
        bytes: 0,
        route: Some(Origin { ingress: ObjectName::new("shop", "a"), path: Some((0, 0)) }),
        service: None,
        endpoint: None,
        tries: 1,
        endpoint_time: None,
        reason: None,
        complete: true,
    };
    let observer = &world.gateway.observer;
    let mut registry = Registry::default();
    observer.metrics.register(&mut registry);
    observer.finished(&record, None, Duration::from_millis(1));
    let metrics = || {
        let mut text = String::new();
        encode(&mut text, &registry).unwrap();
        text
    };
    let labels = "{namespace=\"shop\",ingress=\"a\"";
    for series in ["requests_total", "request_duration_seconds_count"] {
        assert!(metrics().contains(&format!("sluice_ingress_{series}{labels}")), "{}", metrics());
    }
    std::fs::remove_file(world.path("a.yaml")).unwrap();
    world.scan();
    assert!(!metrics().contains(labels), "{}", metrics());
}

#[test]
fn nothing_is_published_before_the_endpoints_are_known() {
    let mut world = World::new();
    world.write("web.yaml", &INGRESS.replace("HOST", "a"));
    world.write("service.yaml", SERVICE);
    world.write("slice.yaml", &slice(&["10.0.0.1"]));
    let of_slices = |event: &SourceEvent| {
        matches!(event, SourceEvent::EndpointSlice(..) | SourceEvent::Synced(WatchedResource::EndpointSlices))
    };
    let (late, early) = world.folder.scan().unwrap().into_iter().partition(of_slices);
    assert!(!world.controller.apply(early).ready);
    assert_eq!((world.hosts(), world.addresses()), (0, None));
    assert!(world.controller.apply(late).ready);
    assert_eq!((world.hosts(), world.addresses()), (1, Some(vec!["10.0.0.1:8080".into()])));
}

#[tokio::test]
async fn users_follow_the_manifests() {
    let mut world = World::new();
    let auth =
        BasicAuth { secret: ObjectName::new("shop", "users"), form: BasicAuthForm::File, realm: "".into() };
    let secret = |hash: &str| {
        let data = serde_json::json!({ "auth": format!("ann:{hash}") });
        let metadata = serde_json::json!({ "name": "users", "namespace": "shop" });
        let secret = serde_json::json!({
            "apiVersion": "v1", "kind": "Secret", "metadata": metadata, "stringData": data,
        });
        secret.to_string()
    };
    world.write("users.json", &secret("{SHA}W6ph5Mm5Pz8GgiULbPgzG37mj9g="));
    world.scan();
    assert_eq!(world.gateway.users.check(&auth, "ann", b"password").await, Verdict::Admitted);
    world.write("users.json", &secret("{SHA}AAAAAAAAAAAAAAAAAAAAAAAAAAA="));
    world.scan();
    assert_eq!(world.gateway.users.check(&auth, "ann", b"password").await, Verdict::Refused);
    std::fs::remove_file(world.path("users.json")).unwrap();
    world.scan();
    assert_eq!(world.gateway.users.check(&auth, "ann", b"password").await, Verdict::NoUsers);
}

#[test]
fn an_invalid_certificate_leaves_the_earlier_one_in_effect() {
    let mut world = World::new();
    let name = ObjectName::new("shop", "tls");
    let secret = |certificate: &str, key: &str| {
        let data = serde_json::json!({ "tls.crt": certificate, "tls.key": key });
        serde_json::json!({
            "apiVersion": "v1", "kind": "Secret", "type": "kubernetes.io/tls",
            "metadata": { "name": "tls", "namespace": "shop" }, "stringData": data,
        })
        .to_string()
    };
    let pem = |name: &str| {
        let pair = rcgen::generate_simple_self_signed([name.to_owned()]).unwrap();
        (pair.cert.pem(), pair.signing_key.serialize_pem())
    };
    let (certificate, key) = pem("a.example");
    world.write("tls.json", &secret(&certificate, &key));
    assert_eq!(world.scan().raised, []);
    let first = world.gateway.certificates.of(Some(&name));
    assert!(!Arc::ptr_eq(&first, &world.gateway.certificates.of(None)));

    world.write("tls.json", &secret(&certificate, &pem("b.example").1));
    let raised = world.scan().raised;
    assert_eq!(raised.len(), 1);
    let text = raised[0].to_string();
    assert!(text.contains("Secret shop/tls") && text.contains("does not belong to"), "{text}");
    assert!(text.contains("tls.json: document 1"), "{text}");
    assert!(Arc::ptr_eq(&first, &world.gateway.certificates.of(Some(&name))));

    world.write("tls.json", &secret(&certificate, &key));
    assert_eq!(world.scan().resolved, raised);
}
