#!/usr/bin/env bash
# Makes the keys, certificates and kubeconfigs of a cluster, under STATE.
set -euo pipefail
. "$(dirname "$0")/env.sh"
mkdir -p "$PKI" "$STATE/conf"
cd "$PKI"
key() { openssl ecparam -name prime256v1 -genkey -noout -out "$1.key"; }
cert() { # NAME SUBJECT EXTENSIONS
    key "$1"
    openssl req -new -key "$1.key" -subj "$2" |
        openssl x509 -req -CA ca.crt -CAkey ca.key -CAcreateserial -days 30 -out "$1.crt" \
            -extfile <(printf 'keyUsage=digitalSignature\n%s\n' "$3") 2>/dev/null
}
config() { # NAME
    cat > "$STATE/conf/$1.kubeconfig" <<YAML
apiVersion: v1
kind: Config
clusters: [{name: test, cluster: {server: "https://127.0.0.1:6443", certificate-authority-data: $(base64 -w0 ca.crt)}}]
users: [{name: $1, user: {client-certificate-data: $(base64 -w0 "$1.crt"), client-key-data: $(base64 -w0 "$1.key")}}]
contexts: [{name: test, context: {cluster: test, user: $1}}]
current-context: test
YAML
}
client() { cert "$1" "$2" extendedKeyUsage=clientAuth; config "$1"; }
server() { cert "$1" "$2" "extendedKeyUsage=serverAuth
subjectAltName=$3"; }
key ca
openssl req -x509 -new -key ca.key -subj /CN=millstream-test-ca -days 30 -out ca.crt
key sa
openssl ec -in sa.key -pubout -out sa.pub 2>/dev/null
server apiserver /CN=kube-apiserver "DNS:localhost,DNS:kubernetes,DNS:kubernetes.default,DNS:kubernetes.default.svc,DNS:kubernetes.default.svc.cluster.local,IP:127.0.0.1,IP:$NET.0.1,IP:$API_SVC_IP"
client apiserver-kubelet /O=system:masters/CN=kube-apiserver-kubelet-client
client admin /O=system:masters/CN=admin
client kube-controller-manager /CN=system:kube-controller-manager
client kube-scheduler /CN=system:kube-scheduler
client kube-proxy /CN=system:kube-proxy
for n in $(seq "$NODES"); do
    client "node$n" "/O=system:nodes/CN=system:node:node$n"
    server "node$n-server" "/O=system:nodes/CN=system:node:node$n" "DNS:node$n,IP:$NET.0.$n"
done
# The controller manager runs as the user of the Pods.
chown -R "$POD_UID" "$PKI" "$STATE/conf/kube-controller-manager.kubeconfig"
