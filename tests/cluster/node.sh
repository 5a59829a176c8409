#!/usr/bin/env bash
# One node: a containerd and a kubelet in mount and PID namespaces of their own. STATE, HYPERKUBE as in run.sh; to be run in the cluster's namespaces:
#   node.sh start N       boots it
#   node.sh kill N        ends it with all its Pods, as a power cut does
#   node.sh pause N       stops the kubelet only: the node turns NotReady, its Pods go on; resume N
set -euo pipefail
. "$(dirname "$0")/env.sh"
verb=$1 n=$2
dir=$STATE/node$n
case $verb in
start)
    mkdir -p "$dir"
    unshare --mount --pid --fork --kill-child=KILL --propagation private \
        bash "$here/node.sh" run "$n" >>"$STATE/log/node$n.log" 2>&1 </dev/null &
    echo $! > "$dir/unshare-pid" ;;
kill) kill -KILL "$(cat "$dir/unshare-pid")" ;;
pause | resume)
    [ "$verb" = pause ] && signal=STOP || signal=CONT
    nsenter -t "$(cat "$dir/pid")" --pid kill -s $signal "$(cat "$dir/kubelet-pid")" ;;
run)
    read -r me _ < /proc/self/stat
    echo "$me" > "$dir/pid"                   # as the cluster's PID namespace sees it
    mount -t proc proc /proc
    for folder in /run "${FIXED_NODE[@]}"; do mount -t tmpfs tmpfs "$folder"; done
    mkdir -p /run/netns "$dir/containerd" "$dir/kubelet" "$dir/pods"
    # The kubelet insists on three machine-wide settings: it is shown the values that it wants, rather than let change the machine.
    for setting in vm/overcommit_memory=1 kernel/panic=10 kernel/panic_on_oops=1; do
        file=${setting%=*}
        echo "${setting#*=}" > "/run/${file##*/}"
        mount --bind "/run/${file##*/}" "/proc/sys/$file"
    done
    mount --make-rshared /
    for hierarchy in /sys/fs/cgroup/*/; do    # cgroup v1: a folder in every controller
        [ -e "$hierarchy/cgroup.procs" ] || continue
        for group in "$CGROUP" "$CGROUP/node$n"; do
            mkdir -p "$hierarchy$group"
            for file in cpuset.cpus cpuset.mems; do
                if [ -e "$hierarchy$file" ]; then cat "$hierarchy$file" > "$hierarchy$group/$file"; fi
            done
        done
    done
    containerd --config "$STATE/conf/containerd-node$n.toml" >>"$STATE/log/containerd-node$n.log" 2>&1 &
    ctr="ctr -a /run/containerd.sock -n k8s.io"
    until $ctr version >/dev/null 2>&1; do sleep 0.1; done
    for image in "$STATE"/images/*.tar; do $ctr images import "$image"; done
    until "$STATE/bin/kubectl" --kubeconfig "$STATE/conf/node$n.kubeconfig" get --raw /readyz >/dev/null 2>&1; do sleep 0.1; done
    "$STATE/bin/kubelet" --config="$STATE/conf/kubelet-node$n.yaml" --kubeconfig="$STATE/conf/node$n.kubeconfig" \
        --root-dir="$dir/kubelet" --hostname-override="node$n" --node-ip="$NET.0.$n" \
        >>"$STATE/log/kubelet-node$n.log" 2>&1 &
    echo $! > "$dir/kubelet-pid"
    wait ;;
esac
