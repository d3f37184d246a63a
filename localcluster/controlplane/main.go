// SPDX-License-Identifier: Apache-2.0

// Command kubelite is every process of a one-machine Kubernetes cluster in one binary, chosen by the
// name that it is called by. One binary is built once, and its pages are shared by all of them.
package main

import (
	"context"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/coredns/coredns/core/dnsserver"
	"github.com/coredns/coredns/coremain"
	_ "github.com/coredns/coredns/plugin/cache"
	_ "github.com/coredns/coredns/plugin/errors"
	_ "github.com/coredns/coredns/plugin/forward"
	_ "github.com/coredns/coredns/plugin/kubernetes"
	_ "github.com/coredns/coredns/plugin/ready"
	"github.com/spf13/cobra"
	"go.etcd.io/etcd/server/v3/etcdmain"
	_ "k8s.io/client-go/plugin/pkg/client/auth"
	"k8s.io/component-base/cli"
	"k8s.io/component-base/logs"
	_ "k8s.io/component-base/logs/json/register"
	_ "k8s.io/component-base/metrics/prometheus/clientgo"
	_ "k8s.io/component-base/metrics/prometheus/version"
	kubectl "k8s.io/kubectl/pkg/cmd"
	kubectlutil "k8s.io/kubectl/pkg/cmd/util"
	apiserver "k8s.io/kubernetes/cmd/kube-apiserver/app"
	kcm "k8s.io/kubernetes/cmd/kube-controller-manager/app"
	proxy "k8s.io/kubernetes/cmd/kube-proxy/app"
	scheduler "k8s.io/kubernetes/cmd/kube-scheduler/app"
	kubelet "k8s.io/kubernetes/cmd/kubelet/app"
)

func main() {
	components := map[string]func(){
		"kube-apiserver":          func() { run(apiserver.NewAPIServerCommand()) },
		"kube-controller-manager": func() { run(kcm.NewControllerManagerCommand()) },
		"kube-scheduler":          func() { run(scheduler.NewSchedulerCommand()) },
		// The kubelet's command installs the signal handler itself: a second one panics.
		"kubelet":             func() { run(kubelet.NewKubeletCommand(context.Background())) },
		"kube-proxy":          func() { run(proxy.NewProxyCommand()) },
		"etcd":                func() { etcdmain.Main(os.Args) },
		"coredns":             runCoreDNS,
		"kubectl":             runKubectl,
		"storage-provisioner": func() { run(newProvisionerCommand()) },
	}
	name := filepath.Base(os.Args[0])
	component, found := components[name]
	if !found {
		names := strings.Join(slices.Sorted(maps.Keys(components)), ", ")
		fmt.Fprintf(os.Stderr, "%q is no component: call this binary by a link named %s\n", name, names)
		os.Exit(2)
	}
	component()
}

func run(command *cobra.Command) {
	os.Exit(cli.Run(command))
}

func runCoreDNS() {
	// Without CoreDNS's own plugin list a directive is unknown until it is named here, in the order it runs.
	dnsserver.Directives = []string{"errors", "ready", "cache", "kubernetes", "forward"}
	coremain.Run()
}

func runKubectl() {
	// kubectl builds its commands with the log level already set.
	if _, err := logs.GlogSetter(kubectl.GetLogVerbosity(os.Args)); err != nil {
		fmt.Fprintln(os.Stderr, err)
	}
	if err := cli.RunNoErrOutput(kubectl.NewDefaultKubectlCommand()); err != nil {
		kubectlutil.CheckErr(err)
	}
}
