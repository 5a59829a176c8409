#!/usr/bin/env bash
# The first process of the cluster's own network, mount and PID namespaces, started by run.sh. When it ends, every process, mount, interface and packet filter rule of the cluster ends with it.
set -euo pipefail
. "$(dirname "$0")/env.sh"
read -r host_pid _ < /proc/self/stat          # /proc is still the host's here
mount --make-rprivate /
mount -t proc proc /proc
# A /sys of this network namespace that keeps the cgroup hierarchies.
mkdir -p "$STATE/cgroup"
mount --rbind /sys/fs/cgroup "$STATE/cgroup"
mount -t sysfs sysfs /sys
mount --rbind "$STATE/cgroup" /sys/fs/cgroup
umount -l "$STATE/cgroup"
mount -t tmpfs tmpfs /run
for folder in "${FIXED_CLUSTER[@]}" "${FIXED_NODE[@]}"; do mkdir -p "$folder"; done
for folder in "${FIXED_CLUSTER[@]}" "$STATE/etcd"; do mount -t tmpfs tmpfs "$folder"; done

ip link set lo up
ip link add cni0 type bridge
for n in $(seq "$NODES"); do ip addr add "$NET.0.$n/16" dev cni0; done
ip link set cni0 up
ip route add default via "$NET.0.1" dev cni0  # kube-proxy and Pods want a default route; it leads nowhere
sysctl -qw net.ipv4.ip_forward=1 net.bridge.bridge-nf-call-iptables=1

start() { local name=$1; shift; "$@" >>"$STATE/log/$name.log" 2>&1 & }
kube() { local name=$1; shift; start "$name" "$STATE/bin/$name" "$@"; }
forever() { until "$@"; do sleep 0.5; done; }  # as a kubelet keeps a static Pod: started again whenever it is killed
# Nothing has to survive the machine.
kube etcd --name test --data-dir "$STATE/etcd" --unsafe-no-fsync --log-level=warn \
    --listen-client-urls http://127.0.0.1:2379 --advertise-client-urls http://127.0.0.1:2379 \
    --listen-peer-urls http://127.0.0.1:2380 --initial-advertise-peer-urls http://127.0.0.1:2380 \
    --initial-cluster test=http://127.0.0.1:2380
# A node that is lost is noticed in seconds, not minutes (also below).
start kube-apiserver forever "$STATE/bin/kube-apiserver" \
    --etcd-servers=http://127.0.0.1:2379 --bind-address=0.0.0.0 --secure-port=6443 --advertise-address="$NET.0.1" \
    --service-cluster-ip-range="$SVC_CIDR" --authorization-mode=Node,RBAC --anonymous-auth=false \
    --default-not-ready-toleration-seconds=10 --default-unreachable-toleration-seconds=10 \
    --enable-admission-plugins=NodeRestriction --allow-privileged=true --profiling=false \
    --client-ca-file="$PKI/ca.crt" --tls-cert-file="$PKI/apiserver.crt" --tls-private-key-file="$PKI/apiserver.key" \
    --kubelet-certificate-authority="$PKI/ca.crt" --kubelet-client-certificate="$PKI/apiserver-kubelet.crt" \
    --kubelet-client-key="$PKI/apiserver-kubelet.key" --kubelet-preferred-address-types=InternalIP \
    --service-account-issuer=https://kubernetes.default.svc --service-account-key-file="$PKI/sa.pub" \
    --service-account-signing-key-file="$PKI/sa.key"
# As the user of the Pods: its built-in provisioner makes folders (0750) that only their owner may write.
chown "$POD_UID" /tmp/hostpath_pv
start kube-controller-manager setpriv --reuid="$POD_UID" --regid="$POD_UID" --clear-groups \
    "$STATE/bin/kube-controller-manager" \
    --kubeconfig="$STATE/conf/kube-controller-manager.kubeconfig" --leader-elect=false --bind-address=127.0.0.1 \
    --root-ca-file="$PKI/ca.crt" --service-account-private-key-file="$PKI/sa.key" \
    --cluster-signing-cert-file="$PKI/ca.crt" --cluster-signing-key-file="$PKI/ca.key" \
    --node-monitor-period=1s --node-monitor-grace-period=8s --use-service-account-credentials=true \
    --enable-hostpath-provisioner=true --profiling=false
kube kube-scheduler --kubeconfig="$STATE/conf/kube-scheduler.kubeconfig" \
    --leader-elect=false --bind-address=127.0.0.1 --profiling=false
for n in $(seq "$NODES"); do "$here/node.sh" start "$n"; done
until "$STATE/bin/kubectl" --kubeconfig "$STATE/conf/admin.kubeconfig" get --raw /readyz >/dev/null 2>&1; do sleep 0.1; done
kube kube-proxy --config="$STATE/conf/kube-proxy.yaml"
echo "$host_pid" > "$STATE/pid.new"
mv "$STATE/pid.new" "$STATE/pid"              # from now on others may enter
wait
