// SPDX-License-Identifier: Apache-2.0

// Command pause is the process that holds a pod's namespaces open, and the whole content of the
// local cluster's image.
package main

import (
	"os"
	"os/signal"
	"syscall"
)

func main() {
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, syscall.SIGINT, syscall.SIGTERM)
	<-stop
}
