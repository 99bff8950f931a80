//! The chart: what it renders, and which values it refuses.

use std::{
    collections::{BTreeMap, BTreeSet},
    env, fs,
    path::PathBuf,
};

use serde_json::{Value, json};

use crate::{
    documents, root,
    tools::{output, run},
};

const CHART: &str = "deploy/chart";
/// The version of Kubernetes that the templates see. A helm that is built from its module assumes
/// an old one.
const KUBERNETES: &str = "--kube-version=1.37.0";

fn template(arguments: &[&str]) -> Result<String, String> {
    run(
        "helm",
        &[&["template", "sluice", CHART, KUBERNETES, "--namespace", "kube-system"], arguments].concat(),
    )
}

/// Returns the objects by kind and name, without the comments of settings in a ConfigMap.
fn objects(yaml: &str) -> BTreeMap<String, Value> {
    let mut objects = BTreeMap::new();
    for mut object in documents(yaml) {
        if let Some(Value::String(settings)) = object.pointer_mut("/data/config.yaml") {
            let parsed = documents(settings).remove(0);
            object["data"]["config.yaml"] = parsed;
        }
        let name = format!("{} {}", object["kind"], object["metadata"]["name"]);
        assert!(objects.insert(name.clone(), object).is_none(), "{name} occurs twice");
    }
    objects
}

/// Lists the differences of two values by their paths.
fn differences(path: &str, left: &Value, right: &Value, found: &mut Vec<String>) {
    match (left, right) {
        (Value::Object(l), Value::Object(r)) => {
            let keys: BTreeSet<_> = l.keys().chain(r.keys()).collect();
            for key in keys {
                let none = Value::Null;
                let (l, r) = (l.get(key).unwrap_or(&none), r.get(key).unwrap_or(&none));
                differences(&format!("{path}.{key}"), l, r, found);
            }
        }
        (Value::Array(l), Value::Array(r)) if l.len() == r.len() => {
            for (number, (l, r)) in l.iter().zip(r).enumerate() {
                differences(&format!("{path}[{number}]"), l, r, found);
            }
        }
        _ if left == right => {}
        _ => found.push(format!("{path}: kustomize {left}, helm {right}")),
    }
}

fn assert_equal(kustomize: &str, helm: &str) {
    let (kustomize, helm) = (objects(kustomize), objects(helm));
    assert!(!kustomize.is_empty(), "kustomize renders nothing");
    let names = |objects: &BTreeMap<String, Value>| objects.keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(&kustomize), names(&helm), "the objects of kustomize and of helm");
    let mut found = Vec::new();
    for (name, object) in &kustomize {
        differences(name, object, &helm[name], &mut found);
    }
    assert!(found.is_empty(), "the chart and deploy/ differ:\n  {}", found.join("\n  "));
}

#[test]
fn with_the_defaults_the_chart_renders_what_kustomize_renders() {
    assert_equal(&output("kustomize", &["build", "deploy"]), &template(&[]).expect("rendered"));
}

#[test]
fn monitoring_of_the_chart_is_that_of_kustomize() {
    let all = ["podMonitor", "alerts", "dashboard"].map(|part| format!("monitoring.{part}.enabled=true"));
    let rendered = template(&["--set", &all.join(",")]).expect("rendered");
    let basic = objects(&template(&[]).expect("rendered"));
    let mut more = objects(&rendered);
    more.retain(|name, _| !basic.contains_key(name));
    let more: Vec<_> = more.values().map(|object| object.to_string()).collect();
    assert_equal(&output("kustomize", &["build", "deploy/monitoring"]), &more.join("\n---\n"));
}

/// The Ingress controller of the chart is that of `deploy/ingress` and of
/// `deploy/ingress-host-network`.
#[test]
fn ingress_of_the_chart_is_that_of_kustomize() {
    let basic = objects(&template(&[]).expect("rendered"));
    for (folder, values) in [
        ("deploy/ingress", "ingress.enabled=true"),
        ("deploy/ingress-host-network", "ingress.enabled=true,ingress.hostNetwork=true"),
    ] {
        let mut more = objects(&template(&["--set", values]).expect("rendered"));
        more.retain(|name, _| !basic.contains_key(name));
        let more: Vec<_> = more.values().map(|object| object.to_string()).collect();
        assert_equal(&output("kustomize", &["build", folder]), &more.join("\n---\n"));
    }
}

/// Returns what a ServiceAccount may do in the whole cluster.
fn rights(yaml: &str, account: &str) -> BTreeSet<String> {
    let objects = objects(yaml);
    let bindings = objects.values().filter(|object| {
        let subjects = object["subjects"].as_array().into_iter().flatten();
        object["kind"] == "ClusterRoleBinding"
            && subjects.filter(|subject| subject["name"] == account).count() > 0
    });
    let roles = bindings.map(|binding| &objects[&format!("\"ClusterRole\" {}", binding["roleRef"]["name"])]);
    let mut rights = BTreeSet::new();
    for rule in roles.flat_map(|role| role["rules"].as_array().expect("rules")) {
        let of = |field: &str| rule[field].as_array().expect("a list").clone();
        for (group, resource, verb) in of("apiGroups").iter().flat_map(|group| {
            let resources = of("resources").into_iter();
            resources.flat_map(move |resource| {
                of("verbs").into_iter().map(move |verb| (group, resource.clone(), verb))
            })
        }) {
            rights.insert(format!("{verb} {resource} {group}"));
        }
    }
    assert!(rights.len() >= 10, "the rights of {account}: {rights:?}");
    rights
}

/// With weights of Pods, the chart grants the rights of kustomize, and without them it does not.
#[test]
fn weights_of_pods_come_with_their_right() {
    let build = |folder: &str| output("kustomize", &["build", folder]);
    let agents = [build("deploy"), build("deploy/pod-weights")];
    let proxies = [build("deploy/ingress"), build("deploy/ingress-pod-weights")];
    for (account, [basic, more], set, value, granted) in [
        ("sluice", &agents, "--set", "settings.podWeights=true", true),
        ("sluice", &agents, "--set-string", "settings.podWeights=true", true),
        ("sluice", &agents, "--set", "settings.podWeights=false", false),
        ("sluice", &agents, "--set", "ingress.enabled=true,ingress.podWeights=true", false),
        ("sluice-ingress", &proxies, "--set", "ingress.enabled=true,ingress.podWeights=true", true),
        ("sluice-ingress", &proxies, "--set", "ingress.enabled=true,settings.podWeights=true", false),
    ] {
        let rendered = template(&[set, value]).expect("rendered");
        let expected = if granted { format!("{basic}\n---\n{more}") } else { basic.clone() };
        assert_eq!(rights(&rendered, account), rights(&expected, account), "{account} with {value}");
        assert_ne!(rights(basic, account), rights(&format!("{basic}\n---\n{more}"), account));
    }
}

#[test]
fn the_chart_has_no_lint() {
    output("helm", &["lint", CHART, KUBERNETES, "--strict"]);
}

/// The files beside the golden outputs are values that people have.
#[test]
fn values_render_as_expected() {
    let folder = root().join("xtask/tests/deploy/golden");
    let mut count = 0;
    for entry in fs::read_dir(&folder).expect("a folder").flatten() {
        let values = entry.path();
        let Some(name) = values.file_name().and_then(|name| name.to_str()?.strip_suffix(".values.yaml"))
        else {
            continue;
        };
        let golden: PathBuf = folder.join(format!("{name}.yaml"));
        let rendered = template(&["--values", values.to_str().expect("UTF-8")]).expect("rendered");
        if env::var_os("SLUICE_BLESS").is_some() {
            fs::write(&golden, &rendered).expect("written");
        }
        let expected = fs::read_to_string(&golden).unwrap_or_default();
        assert!(
            rendered == expected,
            "{} differs; if the new text is right, write it with SLUICE_BLESS=1\n{rendered}",
            golden.display()
        );
        count += 1;
    }
    assert!(count >= 3, "only {count} values");
}

#[test]
fn wrong_values_are_refused_with_their_name() {
    let error = |set: &str| template(&["--set", set]).expect_err(set);
    for (set, name) in [
        ("imgae.tag=1", "imgae"),
        ("settings.mdoe=tc", "mdoe"),
        ("settings.mode=fast", "settings/mode"),
        ("security.capabilities={CAP_BPF}", "security/capabilities"),
        ("apiServer.port=70000", "apiServer/port"),
        ("namespace.name=Sluice", "namespace/name"),
        ("image.digest=latest", "image/digest"),
        ("ingress.defaultCertificate=tls", "ingress/defaultCertificate"),
        ("ingress.nodePorts.http=70000", "ingress/nodePorts/http"),
        ("settings.podWeights=yes", "settings/podWeights"),
        ("settings.waitLock=1", "settings/waitLock"),
        ("ingress.podWeights=yes", "ingress/podWeights"),
        // It would come without the right.
        ("ingress.extraArgs={--pod-weights}", "ingress/extraArgs"),
    ] {
        let error = error(set);
        assert!(error.contains(name), "{set}: {error}");
    }
}

/// The privileged container has none of the other settings of security, which it would ignore.
#[test]
fn privileged_is_a_switch() {
    let objects = objects(&template(&["--set", "security.privileged=true"]).expect("rendered"));
    let daemonset = objects.values().find(|object| object["kind"] == "DaemonSet").expect("a DaemonSet");
    let context = &daemonset["spec"]["template"]["spec"]["containers"][0]["securityContext"];
    assert_eq!(*context, json!({"privileged": true, "readOnlyRootFilesystem": true}));
}

/// The values in `helm` commands of documents are valid, and each folder that a `kubectl` command
/// names has manifests.
#[test]
fn commands_in_documents_render() {
    let (mut helm, mut kubectl) = (0, 0);
    for document in [
        "docs/operations.md",
        "deploy/README.md",
        "deploy/chart/README.md",
        "docs/algorithms.md",
        "docs/ingress.md",
    ] {
        let text = fs::read_to_string(root().join(document)).expect("a document").replace("\\\n", " ");
        for line in text.lines() {
            let words: Vec<_> = line.split_whitespace().collect();
            if words.contains(&CHART) {
                let sets = words.windows(2).filter(|pair| pair[0] == "--set").flatten().copied();
                let arguments: Vec<_> = sets.collect();
                template(&arguments).unwrap_or_else(|error| panic!("{document}: {line}: {error}"));
                helm += 1;
            } else if let ["kubectl", _, "-k", folder, ..] = words[..] {
                output("kustomize", &["build", folder]);
                kubectl += 1;
            }
        }
    }
    assert!(helm >= 5 && kubectl >= 5, "{helm} helm and {kubectl} kubectl commands");
}
