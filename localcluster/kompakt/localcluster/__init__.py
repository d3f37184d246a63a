# SPDX-License-Identifier: Apache-2.0
"""A real Kubernetes cluster on this machine, for demo and tests: no container engine, no registry.

Every control plane process, two kubelets, containerd and Envoy Gateway run as they do elsewhere;
pods are ordinary restricted pods. Only their image is special: it is empty, and a RuntimeClass
shows them the host's programs, the virtual environment and the source, read-only.

This room is never part of an image, and imports none of the others.
"""
