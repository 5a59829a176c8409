# Read by the other scripts. Everything of a cluster lies under $STATE.
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
: "${STATE:?the cluster\'s folder}" "${HYPERKUBE:?the program hyperkube}" "${NODES:=1}"
PKI=$STATE/pki
NET=10.88                                     # $NET.0.N is node N, Pods get the rest of $NET.0.0/16
SVC_CIDR=10.96.0.0/16
API_SVC_IP=10.96.0.1
CGROUP=$(basename "$STATE")
POD_UID=65532                                 # the user that Pods with "standard" volumes run as
LOCAL_PVS=6                                   # volumes of the class "local", on every node
# Fixed in the programs: hidden behind memory in the namespaces of the cluster or of a node.
FIXED_CLUSTER=(/tmp/hostpath_pv)
FIXED_NODE=(/var/log/containers /var/lib/kubelet /var/lib/cni)
