// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"
	"sigs.k8s.io/sig-storage-lib-external-provisioner/v13/controller"
)

const provisionerName = "kompakt.dev/folder"

// folderProvisioner makes each PersistentVolume a folder below root. All nodes are on one machine and
// share its disk, so a volume has no node affinity and may be mounted by many pods at once.
//
// It is here because the provisioner inside kube-controller-manager makes folders that only root can
// write, and fsGroup has no effect on host paths: a restricted pod could not use them.
type folderProvisioner struct {
	root string
}

var _ controller.Provisioner = (*folderProvisioner)(nil)

func (p *folderProvisioner) path(volume string) string {
	return filepath.Join(p.root, filepath.Base(volume))
}

func (p *folderProvisioner) Provision(
	_ context.Context, options controller.ProvisionOptions,
) (*corev1.PersistentVolume, controller.ProvisioningState, error) {
	path := p.path(options.PVName)
	if err := os.MkdirAll(path, 0o777); err != nil {
		return nil, controller.ProvisioningFinished, fmt.Errorf("make the folder of the volume: %w", err)
	}
	// MkdirAll's mode is cut by the umask.
	if err := os.Chmod(path, 0o777); err != nil {
		return nil, controller.ProvisioningFinished, fmt.Errorf("open the folder of the volume: %w", err)
	}
	directory := corev1.HostPathDirectory
	return &corev1.PersistentVolume{
		ObjectMeta: metav1.ObjectMeta{Name: options.PVName},
		Spec: corev1.PersistentVolumeSpec{
			PersistentVolumeReclaimPolicy: *options.StorageClass.ReclaimPolicy,
			AccessModes:                   options.PVC.Spec.AccessModes,
			MountOptions:                  options.StorageClass.MountOptions,
			Capacity: corev1.ResourceList{
				corev1.ResourceStorage: options.PVC.Spec.Resources.Requests[corev1.ResourceStorage],
			},
			PersistentVolumeSource: corev1.PersistentVolumeSource{
				HostPath: &corev1.HostPathVolumeSource{Path: path, Type: &directory},
			},
		},
	}, controller.ProvisioningFinished, nil
}

func (p *folderProvisioner) Delete(_ context.Context, volume *corev1.PersistentVolume) error {
	path := p.path(volume.Name)
	if source := volume.Spec.HostPath; source == nil || source.Path != path {
		return &controller.IgnoredError{Reason: "this volume is not a folder of this provisioner"}
	}
	return os.RemoveAll(path)
}

func newProvisionerCommand() *cobra.Command {
	var kubeconfig, root string
	command := &cobra.Command{
		Use:   "storage-provisioner",
		Short: "Makes PersistentVolumes that are folders of this machine",
		Args:  cobra.NoArgs,
		RunE: func(command *cobra.Command, _ []string) error {
			config, err := clientcmd.BuildConfigFromFlags("", kubeconfig)
			if err != nil {
				return err
			}
			client, err := kubernetes.NewForConfig(config)
			if err != nil {
				return err
			}
			controller.NewProvisionController(
				command.Context(), client, provisionerName, &folderProvisioner{root: root},
				controller.LeaderElection(false),
			).Run(command.Context())
			return nil
		},
	}
	command.Flags().StringVar(&kubeconfig, "kubeconfig", "", "how to reach the API server")
	command.Flags().StringVar(&root, "root", "", "folder that holds the volumes")
	for _, name := range []string{"kubeconfig", "root"} {
		if err := command.MarkFlagRequired(name); err != nil {
			panic(err)
		}
	}
	return command
}
