# SPDX-License-Identifier: Apache-2.0
"""Where the API server is and how to identify to it: kubeconfig or ServiceAccount, read by the
official client.

Tokens are asked for with each request: a ServiceAccount's is renewed on disk, an exec plug-in's by
the plug-in.
"""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import kopf
from kubernetes import client, config
from kubernetes.config.config_exception import ConfigException

_KOPF_LOGIN_LASTS = timedelta(minutes=10)


@dataclass(frozen=True)
class Access:
    """A connection's parameters."""

    configuration: client.Configuration

    @property
    def server(self) -> str:
        """Address of the API server, without a slash at its end."""
        return str(self.configuration.host).rstrip("/")

    @property
    def proxy(self) -> str | None:
        """The proxy that the kubeconfig names."""
        return self.configuration.proxy or None

    def headers(self) -> dict[str, str]:
        """Authorization as of now."""
        settings = self.configuration
        token = settings.get_api_key_with_prefix("BearerToken", "authorization")
        if token:
            return {"Authorization": token if " " in token else f"Bearer {token}"}
        if settings.username and settings.password:
            return {"Authorization": str(settings.get_basic_auth_token())}
        return {}

    def ssl_context(self) -> ssl.SSLContext | bool:
        """TLS with the cluster's authority and our certificate; True for plain HTTP."""
        settings = self.configuration
        if not self.server.startswith("https:"):
            return True
        context = ssl.create_default_context(cafile=settings.ssl_ca_cert or None)
        if settings.cert_file:
            context.load_cert_chain(settings.cert_file, settings.key_file or None)
        if not settings.verify_ssl:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        return context

    def kopf_login(self) -> kopf.ConnectionInfo:
        """The same for kopf, which comes back for a new token when this one has expired."""
        settings = self.configuration
        scheme, _, token = self.headers().get("Authorization", "").partition(" ")
        return kopf.ConnectionInfo(
            server=self.server,
            ca_path=settings.ssl_ca_cert or None,
            insecure=not settings.verify_ssl,
            scheme=scheme or None,
            token=token or None,
            certificate_path=settings.cert_file or None,
            private_key_path=settings.key_file or None,
            proxy_url=self.proxy,
            expiration=datetime.now(UTC) + _KOPF_LOGIN_LASTS if token else None,
        )


def load(kubeconfig: str | None, context: str | None) -> Access:
    """Read the kubeconfig that was named, else the ServiceAccount of this pod, else the default
    kubeconfig.

    Exits with one sentence when there is none.
    """
    settings = client.Configuration()
    try:
        if kubeconfig or context:
            config.load_kube_config(kubeconfig, context, client_configuration=settings)
            return Access(settings)
        try:
            config.load_incluster_config(client_configuration=settings)
        except ConfigException:
            config.load_kube_config(client_configuration=settings)
    except ConfigException as error:
        raise SystemExit(
            f"kompakt-operator: no way to a cluster: {error}; run it in a pod with a "
            "ServiceAccount, or name a kubeconfig with --kubeconfig"
        ) from error
    return Access(settings)
