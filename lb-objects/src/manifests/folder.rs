//! Reads the files of a manifest folder, and compares the objects with those of the last scan.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::fs;
use std::io::{self, ErrorKind};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use lb_model::{ManifestLocation, Problem, ProblemKind, ProblemSource, Severity, SourceEvent};

use super::document::{ObjectKey, ParsedFile, parse};
use super::error::ManifestError;
use crate::selection::ObjectSelection;

/// A manifest folder. [`ManifestFolder::scan`] reads it and returns the changes.
pub struct ManifestFolder {
    root: PathBuf,
    selection: ObjectSelection,
    files: BTreeMap<Arc<Path>, ManifestFile>,
    /// The objects that exist according to the events returned so far.
    sent: BTreeMap<ObjectKey, SourceEvent>,
    /// The reported problems of each file and folder.
    reported: BTreeMap<Arc<Path>, Vec<Problem>>,
    synced: bool,
}

/// The last valid content of a file.
#[derive(Default)]
struct ManifestFile {
    /// `None` if the file was modified so recently that the stamp is not reliable.
    stamp: Option<FileStamp>,
    objects: BTreeMap<ObjectKey, (SourceEvent, Arc<ManifestLocation>)>,
    problems: Vec<Problem>,
}

/// Metadata that changes when a file is written or replaced.
#[derive(PartialEq, Eq)]
struct FileStamp {
    device: u64,
    inode: u64,
    length: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

/// A stamp is reliable when the file has not been modified for this time. Timestamps of file
/// systems have a resolution of milliseconds: two writes in quick succession can have the same
/// stamp.
const STAMP_RELIABLE_AFTER: Duration = Duration::from_secs(1);

impl ManifestFolder {
    /// Creates a scanner that has read nothing yet.
    pub fn new(root: PathBuf, selection: ObjectSelection) -> Self {
        Self {
            root,
            selection,
            files: BTreeMap::new(),
            sent: BTreeMap::new(),
            reported: BTreeMap::new(),
            synced: false,
        }
    }

    /// Reads the changed files and returns the events since the last scan.
    ///
    /// # Errors
    /// Fails if the folder cannot be read in the first scan. In later scans this is a problem like
    /// those of files.
    pub fn scan(&mut self) -> Result<Vec<SourceEvent>, ManifestError> {
        let mut found = FolderWalk { root: fs::canonicalize(&self.root).ok(), ..FolderWalk::default() };
        if let Err(source) = found.folder(&self.root)
            && !self.synced
        {
            return Err(ManifestError::Folder { path: self.root.clone(), source });
        }
        let mut reports: BTreeMap<Arc<Path>, Vec<Problem>> = BTreeMap::new();
        for (folder, error) in &found.unreadable {
            reports.entry(folder.clone()).or_default().push(unreadable(folder, error));
        }
        // The objects of a deleted file are deleted. A file in an unreadable folder counts as
        // unchanged.
        let in_unreadable = |file: &Path| found.unreadable.iter().any(|(folder, _)| file.starts_with(folder));
        self.files.retain(|file, _| found.files.contains(file) || in_unreadable(file));
        for file in &found.files {
            match self.read(file) {
                Ok(()) => {}
                Err(error) if error.kind() == ErrorKind::NotFound => drop(self.files.remove(file)),
                Err(error) => reports.entry(file.clone()).or_default().push(unreadable(file, &error)),
            }
        }
        let objects = self.merge(&mut reports);
        let mut events = self.changes(objects);
        events.extend(self.report(reports));
        if !self.synced {
            self.synced = true;
            events.extend(self.selection.resources.iter().map(SourceEvent::Synced));
        }
        Ok(events)
    }

    fn read(&mut self, path: &Arc<Path>) -> io::Result<()> {
        let stamp = FileStamp::of(path)?;
        if stamp.is_some() && self.files.get(path).is_some_and(|file| file.stamp == stamp) {
            return Ok(());
        }
        let text = String::from_utf8_lossy(&fs::read(path)?).into_owned();
        let ParsedFile { objects, problems, incomplete } = parse(path, &text, &self.selection);
        let mut file = ManifestFile { stamp, problems, ..ManifestFile::default() };
        for (key, event, location) in objects {
            match file.objects.get(&key) {
                None => drop(file.objects.insert(key, (event, location))),
                Some((_, first)) => file.problems.push(duplicate(&key, location, first)),
            }
        }
        if let (true, Some(before)) = (incomplete, self.files.remove(path)) {
            for (key, object) in before.objects {
                file.objects.entry(key).or_insert(object);
            }
        }
        self.files.insert(path.clone(), file);
        Ok(())
    }

    /// Returns the objects of all files. If several files contain an object, the first one counts.
    fn merge(&self, reports: &mut BTreeMap<Arc<Path>, Vec<Problem>>) -> BTreeMap<ObjectKey, SourceEvent> {
        let mut merged: BTreeMap<&ObjectKey, &(SourceEvent, Arc<ManifestLocation>)> = BTreeMap::new();
        for (path, file) in &self.files {
            let problems = reports.entry(path.clone()).or_default();
            problems.extend(file.problems.iter().cloned());
            for (key, object) in &file.objects {
                match merged.get(key) {
                    None => drop(merged.insert(key, object)),
                    Some((_, first)) => problems.push(duplicate(key, object.1.clone(), first)),
                }
            }
        }
        merged.into_iter().map(|(key, (event, _))| (key.clone(), event.clone())).collect()
    }

    fn changes(&mut self, objects: BTreeMap<ObjectKey, SourceEvent>) -> Vec<SourceEvent> {
        let deleted = self.sent.keys().filter(|key| !objects.contains_key(key)).map(deletion);
        let is_changed = |(key, event): &(&ObjectKey, &SourceEvent)| self.sent.get(key) != Some(event);
        let changed = objects.iter().filter(is_changed).map(|(_, event)| event.clone());
        let events = deleted.chain(changed).collect();
        self.sent = objects;
        events
    }

    fn report(&mut self, mut reports: BTreeMap<Arc<Path>, Vec<Problem>>) -> Vec<SourceEvent> {
        reports.retain(|_, problems| !problems.is_empty());
        let paths: BTreeSet<_> = self.reported.keys().chain(reports.keys()).cloned().collect();
        let changed = paths.into_iter().filter(|path| self.reported.get(path) != reports.get(path));
        let events = changed
            .map(|path| {
                let problems = reports.get(&path).cloned().unwrap_or_default();
                SourceEvent::Report(ProblemSource::File(path), problems)
            })
            .collect();
        self.reported = reports;
        events
    }
}

impl FileStamp {
    fn of(path: &Path) -> io::Result<Option<Self>> {
        let metadata = fs::metadata(path)?;
        let age = SystemTime::now().duration_since(metadata.modified()?);
        Ok(age.is_ok_and(|age| age > STAMP_RELIABLE_AFTER).then(|| Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            length: metadata.len(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        }))
    }
}

/// The manifest files of a folder and its subfolders.
#[derive(Default)]
struct FolderWalk {
    /// The folder without symbolic links. `None` if it does not exist.
    root: Option<PathBuf>,
    files: BTreeSet<Arc<Path>>,
    unreadable: Vec<(Arc<Path>, io::Error)>,
    /// Device and inode of each visited folder. Symbolic links can form a cycle.
    visited: HashSet<(u64, u64)>,
}

impl FolderWalk {
    /// Walks through a folder. Stores the errors in `unreadable`, and returns the error of the
    /// folder itself.
    fn folder(&mut self, folder: &Path) -> io::Result<()> {
        let entries = fs::metadata(folder).and_then(|metadata| {
            let unseen = self.visited.insert((metadata.dev(), metadata.ino()));
            if unseen { fs::read_dir(folder)?.collect() } else { Ok(Vec::new()) }
        });
        let entries: Vec<fs::DirEntry> = match entries {
            Ok(entries) => entries,
            Err(error) => {
                let kind = error.kind();
                self.unreadable.push((folder.into(), error));
                return Err(kind.into());
            }
        };
        for entry in entries {
            // Hidden entries: temporary files of editors, and the folders to which the links of a
            // ConfigMap mount lead.
            if entry.file_name().as_encoded_bytes().starts_with(b".") {
                continue;
            }
            let path = entry.path();
            let is_link = entry.file_type().is_ok_and(|file_type| file_type.is_symlink());
            match fs::metadata(&path) {
                Ok(metadata)
                    if (metadata.is_dir() || is_manifest(&path)) && is_link && self.leads_out(&path) =>
                {
                    self.refuse(&path, "it is a link to a place outside of the folder");
                }
                // Reading a FIFO would wait for a writer.
                Ok(metadata) if is_manifest(&path) && !metadata.is_dir() && !metadata.is_file() => {
                    self.refuse(&path, "it is not a regular file");
                }
                Ok(metadata) if metadata.is_dir() => {
                    // The error is in `unreadable`. The walk continues.
                    let _: io::Result<()> = self.folder(&path);
                }
                Ok(_) if is_manifest(&path) => drop(self.files.insert(path.into())),
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                Err(error) => self.unreadable.push((path.into(), error)),
            }
        }
        Ok(())
    }

    fn leads_out(&self, link: &Path) -> bool {
        let root = self.root.as_deref();
        fs::canonicalize(link).is_ok_and(|place| root.is_some_and(|root| !place.starts_with(root)))
    }

    fn refuse(&mut self, path: &Path, reason: &str) {
        self.unreadable.push((path.into(), io::Error::new(ErrorKind::InvalidInput, reason)));
    }
}

fn is_manifest(path: &Path) -> bool {
    path.extension().is_some_and(|extension| ["yaml", "yml", "json"].iter().any(|known| extension == *known))
}

fn deletion(key: &ObjectKey) -> SourceEvent {
    match key {
        ObjectKey::Node => SourceEvent::Node(None),
        ObjectKey::DrainingNode(name) => SourceEvent::NodeDrain(name.clone(), None),
        ObjectKey::Pod(name) => SourceEvent::PodWeight(name.clone(), None),
        ObjectKey::ServiceCidr(name) => SourceEvent::ServiceCidr(name.clone(), None),
        ObjectKey::Service(name) => SourceEvent::Service(name.clone(), None),
        ObjectKey::EndpointSlice(name) => SourceEvent::EndpointSlice(name.clone(), None),
        ObjectKey::Ingress(name) => SourceEvent::Ingress(name.clone(), None),
        ObjectKey::IngressClass(name) => SourceEvent::IngressClass(name.clone(), None),
        ObjectKey::Secret(name) => SourceEvent::Secret(name.clone(), None),
    }
}

fn duplicate(key: &ObjectKey, location: Arc<ManifestLocation>, first: &ManifestLocation) -> Problem {
    let object = match key {
        ObjectKey::Node => "Node".to_owned(),
        ObjectKey::DrainingNode(name) => format!("Node {}", name.name()),
        ObjectKey::Pod(name) => format!("Pod {name}"),
        ObjectKey::ServiceCidr(name) => format!("ServiceCIDR {}", name.name()),
        ObjectKey::Service(name) => format!("Service {name}"),
        ObjectKey::EndpointSlice(name) => format!("EndpointSlice {name}"),
        ObjectKey::Ingress(name) => format!("Ingress {name}"),
        ObjectKey::IngressClass(name) => format!("IngressClass {}", name.name()),
        ObjectKey::Secret(name) => format!("Secret {name}"),
    };
    Problem {
        severity: Severity::Error,
        location: Some(location),
        object: object.into(),
        field: "".into(),
        kind: ProblemKind::Duplicate,
        reason: format!("is also defined in {first}").into(),
        remedy: "delete one of the two; the first one is served".into(),
    }
}

fn unreadable(path: &Path, error: &io::Error) -> Problem {
    Problem {
        severity: Severity::Error,
        location: None,
        object: path.display().to_string().into(),
        field: "".into(),
        kind: ProblemKind::Unreadable,
        reason: format!("cannot be read: {error}").into(),
        remedy: "make it readable for the agent; until then its previous objects are served".into(),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use lb_model::{ResourceSet, WatchedResource};
    use rustix::fs::{CWD, Mode, mkfifoat};

    use super::*;

    fn service(name: &str, ip: &str) -> String {
        format!(
            "{{apiVersion: v1, kind: Service, metadata: {{name: {name}}}, spec: {{clusterIP: \
             {ip}, ports: [{{port: 80}}]}}}}\n"
        )
    }

    /// A temporary folder and its scanner.
    struct Case {
        folder: tempfile::TempDir,
        scanner: ManifestFolder,
    }

    impl Case {
        fn new() -> Self {
            Self::with(ResourceSet::OF_SERVICES)
        }

        /// Selects only these resources.
        fn with(resources: ResourceSet) -> Self {
            let folder = tempfile::tempdir().unwrap();
            let selection = ObjectSelection { resources, ..ObjectSelection::of_services("here") };
            let scanner = ManifestFolder::new(folder.path().to_owned(), selection);
            Self { folder, scanner }
        }

        fn path(&self, file: &str) -> PathBuf {
            self.folder.path().join(file)
        }

        fn write(&self, file: &str, text: &str) {
            fs::create_dir_all(self.path(file).parent().unwrap()).unwrap();
            fs::write(self.path(file), text).unwrap();
        }

        /// Scans the folder. Returns one line for each event.
        fn scan(&mut self) -> Vec<String> {
            let root = format!("{}/", self.folder.path().display());
            let events = self.scanner.scan().unwrap();
            let lines = events.into_iter().filter_map(|event| match event {
                SourceEvent::Service(name, Some(service)) => {
                    Some(format!("{name} = {:?}", service.cluster_ips))
                }
                SourceEvent::Service(name, None) => Some(format!("{name} deleted")),
                SourceEvent::Report(ProblemSource::File(file), problems) => {
                    let problems: Vec<_> = problems.iter().map(ToString::to_string).collect();
                    Some(format!("{}: [{}]", file.display(), problems.join("; ")))
                }
                SourceEvent::Synced(_) => None,
                unexpected => panic!("{unexpected:?}"),
            });
            lines.map(|line| line.replace(&root, "")).collect()
        }
    }

    #[test]
    fn the_first_scan_ends_with_synced_even_if_the_folder_is_empty() {
        let mut case = Case::new();
        assert_eq!(case.scanner.scan().unwrap(), WatchedResource::OF_SERVICES.map(SourceEvent::Synced));
        assert_eq!(case.scanner.scan().unwrap(), []);
    }

    #[test]
    fn objects_that_are_not_selected_are_ignored_with_their_problems() {
        let mut case = Case::with(ResourceSet::of(&[WatchedResource::Services]));
        let ignored = "\
---
{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, metadata: {name: a-1}, addressType: IPX}
---
{apiVersion: discovery.k8s.io/v1beta1, kind: EndpointSlice}
---
{apiVersion: v1, kind: Endpoints, metadata: {name: a}, subsets: 5}
---
{apiVersion: v1, kind: Node, metadata: {name: here}}
---
{apiVersion: networking.k8s.io/v1, kind: ServiceCIDR, metadata: {name: a}, spec: {cidrs: [x]}}
";
        case.write("a.yaml", &format!("{}{ignored}", service("a", "10.0.0.1")));
        let events = case.scanner.scan().unwrap();
        assert!(
            matches!(&events[..], [SourceEvent::Service(..), SourceEvent::Synced(WatchedResource::Services)]),
            "{events:?}"
        );
        case.write("b.yaml", ignored);
        assert_eq!(case.scan(), [""; 0]);
    }

    #[test]
    fn a_scan_returns_changes_only() {
        let mut case = Case::new();
        case.write("a.yaml", &[service("a", "10.0.0.1"), service("b", "10.0.0.2")].join("---\n"));
        case.write("deep/er/c.yml", &service("c", "10.0.0.3"));
        case.write("notes.txt", "not: [yaml");
        case.write(".hidden.yaml", "not: [yaml");
        assert_eq!(
            case.scan(),
            ["default/a = [10.0.0.1]", "default/b = [10.0.0.2]", "default/c = [10.0.0.3]"]
        );
        assert_eq!(case.scan(), [""; 0]);
        case.write("a.yaml", &[service("a", "10.0.0.1"), service("b", "10.0.0.4")].join("---\n"));
        assert_eq!(case.scan(), ["default/b = [10.0.0.4]"]);
        fs::remove_dir_all(case.path("deep")).unwrap();
        assert_eq!(case.scan(), ["default/c deleted"]);
        fs::rename(case.path("a.yaml"), case.path("z.yaml")).unwrap();
        // The objects changed: their location is part of them.
        assert_eq!(case.scan(), ["default/a = [10.0.0.1]", "default/b = [10.0.0.4]"]);
        fs::remove_file(case.path("z.yaml")).unwrap();
        assert_eq!(case.scan(), ["default/a deleted", "default/b deleted"]);
    }

    #[test]
    fn an_invalid_file_keeps_its_last_valid_objects() {
        let mut case = Case::new();
        case.write("a.yaml", &[service("a", "10.0.0.1"), service("b", "10.0.0.2")].join("---\n"));
        case.scan();
        case.write("a.yaml", &[service("a", "10.0.0.9"), "kind: [".to_owned()].join("---\n"));
        let lines = case.scan();
        assert_eq!(lines[0], "default/a = [10.0.0.9]");
        assert!(lines[1].starts_with("a.yaml: [a.yaml: document 2 (line 3): is not YAML: "), "{lines:?}");
        assert_eq!(lines.len(), 2, "{lines:?}");
        case.write("a.yaml", &service("a", "10.0.0.9"));
        assert_eq!(case.scan(), ["default/b deleted", "a.yaml: []"]);
    }

    #[test]
    fn the_first_of_two_files_with_the_same_object_is_served() {
        let mut case = Case::new();
        case.write("2.yaml", &service("a", "10.0.0.2"));
        case.write("3.yaml", &[service("b", "10.0.0.3"), service("b", "10.0.0.4")].join("---\n"));
        assert_eq!(
            case.scan(),
            [
                "default/a = [10.0.0.2]",
                "default/b = [10.0.0.3]",
                "3.yaml: [3.yaml: document 2 (line 2): Service default/b: is also defined in \
                 3.yaml: document 1 (line 1): delete one of the two; the first one is served]",
            ]
        );
        case.write("1.yaml", &service("a", "10.0.0.1"));
        assert_eq!(
            case.scan(),
            [
                "default/a = [10.0.0.1]",
                "2.yaml: [2.yaml: document 1 (line 1): Service default/a: is also defined in \
                 1.yaml: document 1 (line 1): delete one of the two; the first one is served]",
            ]
        );
        fs::remove_file(case.path("1.yaml")).unwrap();
        assert_eq!(case.scan(), ["default/a = [10.0.0.2]", "2.yaml: []"]);
    }

    /// <https://github.com/kubernetes/kubernetes/blob/v1.34.0/pkg/volume/util/atomic_writer.go>
    #[test]
    fn a_config_map_mount_switches_all_files_at_once() {
        let mut case = Case::new();
        case.write("..1/a.yaml", &service("a", "10.0.0.1"));
        symlink("..1", case.path("..data")).unwrap();
        symlink("..data/a.yaml", case.path("a.yaml")).unwrap();
        assert_eq!(case.scan(), ["default/a = [10.0.0.1]"]);
        case.write("..2/a.yaml", &service("a", "10.0.0.2"));
        symlink("..2", case.path("..data_tmp")).unwrap();
        fs::rename(case.path("..data_tmp"), case.path("..data")).unwrap();
        fs::remove_dir_all(case.path("..1")).unwrap();
        assert_eq!(case.scan(), ["default/a = [10.0.0.2]"]);
    }

    #[test]
    fn a_link_back_to_the_folder_does_not_cause_an_endless_loop() {
        let mut case = Case::new();
        case.write("deep/a.yaml", &service("a", "10.0.0.1"));
        symlink("..", case.path("deep/up")).unwrap();
        assert_eq!(case.scan(), ["default/a = [10.0.0.1]"]);
    }

    #[test]
    fn files_that_are_no_regular_files_of_the_folder_are_refused() {
        let mut case = Case::new();
        let elsewhere = tempfile::tempdir().unwrap();
        fs::write(elsewhere.path().join("b.yaml"), service("b", "10.0.0.2")).unwrap();
        case.write("a.yaml", &service("a", "10.0.0.1"));
        mkfifoat(CWD, case.path("fifo.yaml"), Mode::RUSR).unwrap();
        symlink(elsewhere.path().join("b.yaml"), case.path("file.yaml")).unwrap();
        symlink(elsewhere.path(), case.path("folder")).unwrap();
        symlink("/dev/zero", case.path("zero.json")).unwrap();
        let lines = case.scan();
        assert_eq!(lines.iter().filter(|line| line.starts_with("default/")).count(), 1, "{lines:?}");
        for (name, reason) in [
            ("fifo.yaml", "it is not a regular file"),
            ("file.yaml", "it is a link to a place outside"),
            ("folder", "it is a link to a place outside"),
            ("zero.json", "it is a link to a place outside"),
        ] {
            assert!(
                lines.iter().any(|line| line.contains(name) && line.contains(reason)),
                "{name}: {lines:?}"
            );
        }
    }

    #[test]
    fn a_folder_that_disappears_deletes_no_objects() {
        let mut case = Case::new();
        case.write("a.yaml", &service("a", "10.0.0.1"));
        case.scan();
        let elsewhere = tempfile::tempdir().unwrap();
        fs::rename(case.folder.path(), elsewhere.path().join("moved")).unwrap();
        let lines = case.scan();
        assert_eq!(lines.len(), 1, "{lines:?}");
        assert!(lines[0].contains("cannot be read"), "{lines:?}");
        fs::rename(elsewhere.path().join("moved"), case.folder.path()).unwrap();
        let lines = case.scan();
        assert!(lines.len() == 1 && lines[0].ends_with(": []"), "{lines:?}");
    }

    #[test]
    fn a_folder_that_does_not_exist_is_an_error_at_start() {
        let folder = tempfile::tempdir().unwrap();
        let error = ManifestFolder::new(folder.path().join("none"), ObjectSelection::of_services("here"))
            .scan()
            .unwrap_err();
        assert!(error.to_string().contains("/none cannot be read: "), "{error}");
    }
}
