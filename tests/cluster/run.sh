#!/usr/bin/env bash
# Runs a Kubernetes cluster in namespaces of its own until SIGTERM:  run.sh STATE HYPERKUBE NODES
# STATE/ready appears when its nodes are Ready; STATE/pid is then a process in its namespaces. Images in STATE/images/*.tar are imported on every node.
set -euo pipefail
export STATE=$1 HYPERKUBE=$2 NODES=$3
. "$(dirname "$0")/env.sh"

unshared=
clean() {
    trap '' TERM INT
    if [ -n "$unshared" ]; then
        kill -KILL "$unshared" 2>/dev/null || true
        # Its first process is killed with it, and with that one everything in its PID namespace.
        local first
        first=$(cat "$STATE/pid" 2>/dev/null || true)
        while [ -n "$first" ] && kill -0 "$first" 2>/dev/null; do sleep 0.05; done
    fi
    # The kernel needs a moment until the groups are empty.
    for _ in $(seq 100); do
        local left=0 hierarchy
        for hierarchy in /sys/fs/cgroup/*/"$CGROUP"; do
            [ -d "$hierarchy" ] || continue
            find "$hierarchy" -depth -type d -exec rmdir {} \; 2>/dev/null || true
            [ ! -d "$hierarchy" ] || left=1
        done
        [ $left = 1 ] || break
        sleep 0.1
    done
    if [ -s "$STATE/made" ]; then xargs rmdir 2>/dev/null < "$STATE/made" || true; fi
    # What was said is left to whoever started this.
    find "${STATE:?}" -mindepth 1 -maxdepth 1 ! -name server.log -exec rm -rf {} +
}
trap clean EXIT
trap 'exit 0' TERM INT

for program in containerd runc ctr nft iptables conntrack socat ip nsenter unshare setpriv openssl; do
    command -v $program >/dev/null || { echo "there is no $program: make test installs it" >&2; exit 1; }
done
for folder in "${FIXED_CLUSTER[@]}" "${FIXED_NODE[@]}"; do
    [ -e "$folder" ] || echo "$folder" >> "$STATE/made"
done
mkdir -p "$STATE"/{conf,cni,log,etcd,images,bin}
for name in etcd kube-apiserver kube-controller-manager kube-scheduler kube-proxy kubelet kubectl; do
    ln -sf "$HYPERKUBE" "$STATE/bin/$name"
done
bash "$here/pki.sh"
for n in $(seq "$NODES"); do
    cat > "$STATE/conf/containerd-node$n.toml" <<TOML
version = 2
root = "$STATE/node$n/containerd"
state = "/run/containerd-state"
disabled_plugins = ["io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.zfs", "io.containerd.internal.v1.opt"]
[grpc]
  address = "/run/containerd.sock"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "localhost/pause:1"
  # Without it every sandbox fails where CAP_SYS_RESOURCE is missing.
  restrict_oom_score_adj = true
  disable_hugetlb_controller = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/usr/lib/cni"
    conf_dir = "$STATE/cni"
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "overlayfs"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
      [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
        SystemdCgroup = false
TOML
    cat > "$STATE/conf/kubelet-node$n.yaml" <<YAML
apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
address: $NET.0.$n
healthzBindAddress: $NET.0.$n
authentication: {anonymous: {enabled: false}, webhook: {enabled: true}, x509: {clientCAFile: $PKI/ca.crt}}
authorization: {mode: Webhook}
tlsCertFile: $PKI/node$n-server.crt
tlsPrivateKeyFile: $PKI/node$n-server.key
cgroupDriver: cgroupfs
cgroupRoot: /$CGROUP/node$n
clusterDNS: [$NET.0.1]
clusterDomain: cluster.local
containerRuntimeEndpoint: unix:///run/containerd.sock
failSwapOn: false
podLogsDir: $STATE/node$n/pods
volumePluginDir: $STATE/node$n/volume-plugins
resolvConf: ""
serializeImagePulls: false
evictionHard: {memory.available: 50Mi, nodefs.available: 50Mi, imagefs.available: 50Mi}
imageGCHighThresholdPercent: 100
imageGCLowThresholdPercent: 99
failCgroupV1: false
nodeStatusUpdateFrequency: 2s
nodeLeaseDurationSeconds: 4
YAML
done
cat > "$STATE/cni/10-test.conflist" <<JSON
{"cniVersion": "1.0.0", "name": "test", "plugins": [
  {"type": "bridge", "bridge": "cni0", "hairpinMode": true,
   "ipam": {"type": "host-local", "dataDir": "$STATE/cni-ipam", "routes": [{"dst": "0.0.0.0/0"}],
            "ranges": [[{"subnet": "$NET.0.0/16", "rangeStart": "$NET.1.0", "rangeEnd": "$NET.250.255", "gateway": "$NET.0.1"}]]}},
  {"type": "portmap", "capabilities": {"portMappings": true}}]}
JSON
cat > "$STATE/conf/kube-proxy.yaml" <<YAML
apiVersion: kubeproxy.config.k8s.io/v1alpha1
kind: KubeProxyConfiguration
mode: nftables
clusterCIDR: $NET.0.0/16
hostnameOverride: node1
nodePortAddresses: [primary]
clientConnection: {kubeconfig: $STATE/conf/kube-proxy.kubeconfig}
conntrack: {maxPerCore: 0, min: 0, tcpEstablishedTimeout: 0s, tcpCloseWaitTimeout: 0s}
YAML
unshare --net --mount --pid --fork --kill-child=KILL --propagation private \
    bash "$here/cluster.sh" >"$STATE/log/cluster.log" 2>&1 </dev/null &
unshared=$!
fail() {
    echo "$1" >&2
    tail -n 20 "$STATE"/log/*.log >&2
    exit 1
}
within() { # SECONDS COMMAND...
    local end=$((SECONDS + $1))
    shift
    until "$@" >/dev/null 2>&1; do
        kill -0 "$unshared" 2>/dev/null || fail "the cluster ended"
        [ $SECONDS -lt $end ] || fail "not in time: $*"
        sleep 0.1
    done
}
k() { nsenter -t "$(cat "$STATE/pid")" --net -- "$STATE/bin/kubectl" --kubeconfig "$STATE/conf/admin.kubeconfig" "$@"; }
untainted() { [ -z "$(k get nodes -o 'jsonpath={.items[*].spec.taints}')" ]; }
within 120 test -s "$STATE/pid"
k apply -f - >/dev/null <<YAML
apiVersion: storage.k8s.io/v1
kind: StorageClass
metadata: {name: standard, annotations: {storageclass.kubernetes.io/is-default-class: "true"}}
provisioner: kubernetes.io/host-path
reclaimPolicy: Delete
---
apiVersion: storage.k8s.io/v1
kind: StorageClass
metadata: {name: local}
provisioner: kubernetes.io/no-provisioner
volumeBindingMode: WaitForFirstConsumer
YAML
for n in $(seq "$NODES"); do
    for i in $(seq "$LOCAL_PVS"); do
        mkdir -p "$STATE/local/node$n-$i"
        cat <<YAML
---
apiVersion: v1
kind: PersistentVolume
metadata: {name: node$n-$i}
spec:
  storageClassName: local
  accessModes: [ReadWriteOnce]
  capacity: {storage: 10Gi}
  persistentVolumeReclaimPolicy: Retain
  local: {path: $STATE/local/node$n-$i}
  nodeAffinity: {required: {nodeSelectorTerms: [{matchExpressions: [{key: kubernetes.io/hostname, operator: In, values: [node$n]}]}]}}
YAML
    done
done | k apply -f - >/dev/null
for n in $(seq "$NODES"); do within 120 k get node "node$n"; done
within 120 k wait --for=condition=Ready node --all --timeout=5s
within 60 untainted
touch "$STATE/ready"
wait "$unshared"
