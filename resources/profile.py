"""The one place where the profiles differ: which executor a run gets, and the resources' settings."""

from __future__ import annotations

import dagster as dg

from resources.database import DatabaseResource
from resources.embedding import EmbeddingResource
from resources.estuary import EstuaryResource
from resources.platform import PlatformResource
from sophia.settings import Profile


def resources_of() -> dict[str, dg.ConfigurableResource]:
    """Resources by key. They read the settings when used, which carry the profile's addresses."""
    return {
        "database": DatabaseResource(),
        "embedding": EmbeddingResource(),
        "estuary": EstuaryResource(),
        "platform": PlatformResource(),
    }


def executor_of(profile: Profile) -> dg.ExecutorDefinition:
    """In this process locally, where a step process would cost seconds; a pod a step in the cluster."""
    if profile == "local":
        return dg.in_process_executor
    from dagster_k8s import k8s_job_executor

    return k8s_job_executor
