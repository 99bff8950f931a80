//! Kubernetes distributions, and operating systems for Kubernetes, whose nodes differ from those
//! that kubeadm sets up.

/// A distribution or an operating system.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Distribution {
    Bottlerocket,
    K0s,
    K3s,
    Kind,
    MicroK8s,
    Rke2,
    Talos,
}

impl Distribution {
    /// The distributions with the folder by which a node is recognized. Several of them have
    /// folders of K3s, which comes last.
    const FOLDERS: [(&str, Self); 5] = [
        ("/kind", Self::Kind),
        ("/var/lib/rancher/rke2", Self::Rke2),
        ("/var/lib/k0s", Self::K0s),
        ("/var/snap/microk8s", Self::MicroK8s),
        ("/var/lib/rancher/k3s", Self::K3s),
    ];

    /// Returns the distribution of a node. `exists` returns whether a folder exists, `os_release`
    /// is the text of os-release(5).
    pub fn find(exists: impl Fn(&str) -> bool, os_release: &str) -> Option<Self> {
        let id = os_release.lines().find_map(|line| line.strip_prefix("ID="));
        match id.map(|id| id.trim_matches('"')) {
            Some("talos") => Some(Self::Talos),
            Some("bottlerocket") => Some(Self::Bottlerocket),
            _ => Self::FOLDERS.into_iter().find(|(folder, _)| exists(folder)).map(|(_, found)| found),
        }
    }

    pub fn name(self) -> &'static str {
        match self {
            Self::Bottlerocket => "Bottlerocket",
            Self::K0s => "k0s",
            Self::K3s => "K3s",
            Self::Kind => "kind",
            Self::MicroK8s => "MicroK8s",
            Self::Rke2 => "RKE2",
            Self::Talos => "Talos",
        }
    }

    /// Returns how kube-proxy is removed, unless it is a DaemonSet as with kubeadm.
    pub fn without_kube_proxy(self) -> Option<&'static str> {
        match self {
            Self::Bottlerocket => None,
            Self::K0s => Some("set spec.network.kubeProxy.disabled in the ClusterConfig of k0s"),
            Self::K3s => Some("start the servers of K3s with --disable-kube-proxy"),
            Self::Kind => Some(
                "create the cluster with networking.kubeProxyMode: none, or delete the DaemonSet kube-proxy",
            ),
            Self::MicroK8s => Some(
                "MicroK8s runs kube-proxy as a part of its service kubelite: stop it there \
                 (/var/snap/microk8s/current/args)",
            ),
            Self::Rke2 => Some("set disable-kube-proxy: true in the configuration of the servers of RKE2"),
            Self::Talos => Some("set cluster.proxy.disabled: true in the machine configuration of Talos"),
        }
    }

    /// Returns an address of the API server that each node has, and that needs no Service.
    pub fn api_server(self) -> Option<&'static str> {
        match self {
            // The load balancers of these distributions for their own kubelets.
            Self::K3s | Self::Rke2 => Some("https://127.0.0.1:6444 on nodes without a control plane"),
            Self::Talos => Some("https://127.0.0.1:7445 (KubePrism)"),
            Self::Kind => Some("https://NAME-control-plane:6443"),
            Self::MicroK8s => Some("https://127.0.0.1:16443"),
            Self::Bottlerocket | Self::K0s => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_is_recognized_by_its_operating_system_or_a_folder() {
        let found = |folders: &[&str], os_release| {
            Distribution::find(|folder| folders.contains(&folder), os_release).map(Distribution::name)
        };
        assert_eq!(found(&[], "NAME=\"Talos\"\nID=talos\n"), Some("Talos"));
        assert_eq!(found(&[], "ID=\"bottlerocket\"\n"), Some("Bottlerocket"));
        assert_eq!(found(&["/var/lib/kubelet"], "ID=debian\n"), None);
        assert_eq!(found(&["/var/lib/rancher/k3s", "/var/lib/rancher/rke2"], "ID=ubuntu\n"), Some("RKE2"));
        for (folder, distribution) in Distribution::FOLDERS {
            assert_eq!(found(&[folder], ""), Some(distribution.name()));
        }
    }
}
