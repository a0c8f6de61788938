"""Quotas: what one tenant may hold of the server.

They go by uid: a label is a client's own choice. What a tenant holds is compared with the settings before anything is
opened or made. A quota that is lowered takes nothing away.
"""

from __future__ import annotations

import resource
from typing import Final

from pagefold_proto.limits import PAGE

from pagefold_server.errors import LimitReached
from pagefold_server.settings import Configuration
from pagefold_server.tenants.tenants import Tenant

_DESCRIPTORS: Final = 2  # a segment takes (one is the engine's), and so does a session (its lease and its connection)


class Quotas:
    """What a tenant may hold. Each refusal names the user, the quota, what it has, and what to do.

    Args:
        configuration: asked anew every time.
    """

    def __init__(self, configuration: Configuration) -> None:
        self._configuration = configuration

    def check_session(self, tenant: Tenant) -> None:
        """Whether it may have another session.

        Raises:
            LimitReached: no.
        """
        held, most = tenant.holdings, self._configuration.now.tenant_max_sessions
        if most and held.sessions >= most:
            raise LimitReached(
                f"uid {tenant.uid} has {held.sessions} sessions, its quota: close some, or raise tenant_max_sessions"
            )
        self._check_descriptors(tenant)
        self._check_mappings(tenant)

    def check_domain(self, tenant: Tenant, domains: int) -> None:
        """Whether it may have another domain, beside the `domains` that it has.

        Raises:
            LimitReached: no.
        """
        most = self._configuration.now.tenant_max_domains
        if most and domains >= most:
            raise LimitReached(
                f"uid {tenant.uid} has {domains} domains, its quota: use fewer labels, or raise tenant_max_domains"
            )

    def check_segment(self, tenant: Tenant, pages: int) -> None:
        """Whether it may have another segment, of `pages` pages.

        Raises:
            LimitReached: no.
        """
        held, settings = tenant.holdings, self._configuration.now
        if settings.tenant_max_segments and held.segments >= settings.tenant_max_segments:
            raise LimitReached(
                f"uid {tenant.uid} has {held.segments} segments, its quota: free buffers, or raise tenant_max_segments"
            )
        together = (held.pages + pages) * PAGE
        if settings.tenant_max_bytes and together > settings.tenant_max_bytes:
            raise LimitReached(
                f"uid {tenant.uid} would have segments of {together} bytes, and its quota is "
                f"{settings.tenant_max_bytes}: free buffers, or raise tenant_max_bytes"
            )
        self._check_descriptors(tenant)
        self._check_mappings(tenant)

    def _check_mappings(self, tenant: Tenant) -> None:
        held, most = tenant.holdings, self._configuration.now.tenant_max_mappings
        if most and held.mappings >= most:
            raise LimitReached(
                f"the memory of uid {tenant.uid} is cut into {held.mappings} mappings, its quota: "
                "lower the mapping_budget of its clients, or raise tenant_max_mappings"
            )

    def _check_descriptors(self, tenant: Tenant) -> None:
        """No tenant takes more than half of the server's descriptors."""
        held = tenant.holdings
        allowed, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        if allowed != resource.RLIM_INFINITY and (held.segments + held.sessions + 1) * _DESCRIPTORS > allowed // 2:
            raise LimitReached(
                f"uid {tenant.uid} takes half of the server's {allowed} descriptors: free buffers, or raise the limit "
                "(ulimit -n) and restart the server"
            )
