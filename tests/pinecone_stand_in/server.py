"""The stand-in's HTTP server. The index `name` answers under `<url>/index/name`."""

from __future__ import annotations

import base64
import itertools
import socket
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import orjson
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from tests.pinecone_stand_in import rules
from tests.pinecone_stand_in.answers import Trouble, answer_of, as_object, as_record
from tests.pinecone_stand_in.rules import Fault
from tests.pinecone_stand_in.state import Index, Namespace, cosines
from tests.waiting import until

API_KEY = "pc-test-key"
FORBIDDEN_KEY = "pc-read-nothing"
_CODES = {400: "INVALID_ARGUMENT", 404: "NOT_FOUND", 409: "ALREADY_EXISTS", 401: "UNAUTHENTICATED", 403: "FORBIDDEN"}


class StandIn:
    """Pinecone on loopback.

    Attributes:
        lag: how many queries of a namespace still show it as it was before a write; None for one that is never shown.
        every: each so many requests is answered 429; 0 for none.
        positions: whether answers name log positions.
        requests: method and path of each request to an index, in order.
    """

    def __init__(self) -> None:
        self.reset()
        self._count = itertools.count(1)
        self._port = 0
        self._server: uvicorn.Server | None = None
        self._thread: threading.Thread | None = None
        self.start()

    def reset(self) -> None:
        """Hold nothing, and have no switch turned."""
        self.lag: int | None = 0
        self.every = 0
        self.retry_after: float | None = None
        self.positions = True
        self.requests: list[tuple[str, str]] = []
        self.indexes: dict[str, Index] = {}
        self._behind: dict[int, int] = {}
        self._troubles: list[Trouble] = []

    # ---- switches -------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Listen, on the same port as before."""
        listener = socket.create_server(("127.0.0.1", self._port), reuse_port=False)
        self._port = listener.getsockname()[1]
        config = uvicorn.Config(self._app(), log_level="error", access_log=False, lifespan="off", loop="asyncio")
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, args=([listener],), daemon=True)
        self._thread.start()
        server = self._server
        until(lambda: server.started, "the stand-in")

    def stop(self) -> None:
        """Be away; what is held stays."""
        if self._server is not None and self._thread is not None:
            self._server.should_exit = True
            self._server.force_exit = True
            self._thread.join(60)
            self._server = None

    @property
    def url(self) -> str:
        """Base URL of the control plane."""
        return f"http://127.0.0.1:{self._port}"

    def trouble(
        self, status: int, times: int = 1, *, path: str = "", retry_after: float | None = None, late: bool = False
    ) -> None:
        """Answer the next requests with an error.

        Args:
            path: only those whose path ends with it.
            late: what the request asks for is done nevertheless: only the answer is lost.
        """
        self._troubles.append(Trouble(status, times, retry_after, path, late))

    def calm(self) -> None:
        """No more trouble."""
        self._troubles.clear()

    def create(self, name: str, dimension: int, *, metric: str = "cosine", pods: bool = False) -> Index:
        """Make an index."""
        deployment: dict[str, Any] = {"deployment_type": "managed", "cloud": "aws", "region": "us-east-1"}
        if pods:
            deployment = {"deployment_type": "pod", "environment": "us-east1-gcp", "pod_type": "p1.x1"}
            deployment |= {"replicas": 1, "shards": 1}
        self.indexes[name] = Index(name, dimension, metric, deployment)
        return self.indexes[name]

    def shown(self, index: str, namespace: str) -> dict[str, dict[str, Any]]:
        """The records that reads show."""
        there = self.indexes[index].namespaces.get(namespace)
        return there.shown if there is not None else {}

    def catch_up(self) -> None:
        """Show all that was written."""
        for index in self.indexes.values():
            for namespace in index.namespaces.values():
                namespace.index()

    def asked(self, path: str) -> int:
        """How many requests had a path that ends so."""
        return sum(each.endswith(path) for _, each in self.requests)

    # ---- HTTP -----------------------------------------------------------------------------------------------------

    def _app(self) -> Starlette:
        return Starlette(
            routes=[
                Route("/indexes/{name}", self._control(self._describe)),
                Route("/indexes", self._control(self._create), methods=["POST"]),
                Route("/index/{name}/vectors/upsert", self._data(self._upsert), methods=["POST"]),
                Route("/index/{name}/vectors/fetch", self._data(self._fetch)),
                Route("/index/{name}/vectors/list", self._data(self._list)),
                Route("/index/{name}/vectors/delete", self._data(self._delete), methods=["POST"]),
                Route("/index/{name}/query", self._data(self._query), methods=["POST"]),
                Route("/index/{name}/describe_index_stats", self._data(self._stats), methods=["POST"]),
                Route("/index/{name}/namespaces/{namespace}", self._data(self._drop), methods=["DELETE"]),
            ]
        )

    def _control(self, answer: Callable[[Request, bytes], Any]) -> Callable[[Request], Any]:
        async def endpoint(request: Request) -> Response:
            body = await request.body()
            try:
                self._admit(request)
                status, content = answer(request, body)
            except Fault as fault:
                content = {"error": {"code": _CODES.get(fault.status, "UNKNOWN"), "message": fault.message}}
                return answer_of(fault.status, content | {"status": fault.status})
            return answer_of(status, content)

        return endpoint

    def _data(self, answer: Callable[[Request, bytes, Index], Any]) -> Callable[[Request], Any]:
        async def endpoint(request: Request) -> Response:
            body = await request.body()
            self.requests.append((request.method, request.url.path))
            headers = {"x-pinecone-request-id": str(next(self._count))}
            trouble = self._next_trouble(request.url.path)
            try:
                self._admit(request)
                if trouble is not None and not trouble.late:
                    raise Fault(trouble.status, rules.UNAVAILABLE, "the service is unavailable")
                if self.every and len(self.requests) % self.every == 0:
                    trouble = Trouble(429, 1, self.retry_after, "", False)
                    raise Fault(429, rules.RESOURCE_EXHAUSTED, "Too many requests")
                index = self.indexes.get(request.path_params["name"])
                if index is None:
                    raise Fault(404, rules.NOT_FOUND, "Not Found")
                content, positions = answer(request, body, index)
                if trouble is not None:
                    raise Fault(trouble.status, rules.UNAVAILABLE, "the service is unavailable")
            except Fault as fault:
                if trouble is not None and trouble.retry_after is not None:
                    headers["retry-after"] = str(trouble.retry_after)
                if fault.status == 401:
                    return Response("Unauthorized", 401, headers, "text/plain")
                return answer_of(fault.status, {"code": fault.code, "message": fault.message, "details": []}, headers)
            return answer_of(200, content, headers | (positions if self.positions else {}))

        return endpoint

    def _next_trouble(self, path: str) -> Trouble | None:
        for trouble in self._troubles:
            if trouble.times and path.endswith(trouble.path):
                trouble.times -= 1
                return trouble
        return None

    def _admit(self, request: Request) -> None:
        """Every request bears an API key and the version of the API."""
        key = request.headers.get("api-key")
        if key == FORBIDDEN_KEY:
            raise Fault(403, 7, "Forbidden")
        if key != API_KEY:
            raise Fault(401, 16, "Invalid API key.")
        if not request.headers.get("x-pinecone-api-version"):
            raise Fault(400, rules.INVALID_ARGUMENT, "X-Pinecone-Api-Version is required")

    # ---- control plane --------------------------------------------------------------------------------------------

    def _describe(self, request: Request, body: bytes) -> Any:
        name = request.path_params["name"]
        if name not in self.indexes:
            raise Fault(404, rules.NOT_FOUND, f"Resource {name} not found")
        return 200, self.indexes[name].described(f"{self.url}/index/{name}")

    def _create(self, request: Request, body: bytes) -> Any:
        wanted = orjson.loads(body)
        name = wanted["name"]
        if name in self.indexes:
            raise Fault(409, 6, "Resource already exists")
        values = wanted["schema"]["fields"]["_values"]
        index = self.create(name, values["dimension"], metric=values["metric"])
        index.deployment = wanted["deployment"]
        return 201, index.described(f"{self.url}/index/{name}")

    # ---- data plane -----------------------------------------------------------------------------------------------

    def _write(self, namespace: Namespace, change: Callable[[Any], None]) -> dict[str, str]:
        position = namespace.write(change)
        if self.lag == 0:
            namespace.index()
        else:
            self._behind[id(namespace)] = self.lag if self.lag is not None else -1
        return {"x-pinecone-request-lsn": str(position)}

    def _upsert(self, request: Request, body: bytes, index: Index) -> Any:
        rules.check_size(body)
        wanted = as_object(body)
        vectors = wanted.get("vectors")
        if not isinstance(vectors, list) or not 1 <= len(vectors) <= rules.UPSERT_RECORDS:
            raise Fault(400, rules.INVALID_ARGUMENT, f"An upsert has from 1 to {rules.UPSERT_RECORDS} vectors")
        records = {
            rules.check_id(vector.get("id")): {
                "values": np.asarray(rules.check_values(vector.get("values"), index.dimension), dtype=np.float32),
                "metadata": rules.check_metadata(vector.get("metadata")),
            }
            for vector in vectors
        }
        namespace = index.namespaces.setdefault(wanted.get("namespace", ""), Namespace())
        positions = self._write(namespace, lambda there: there.update(records))
        return {"upsertedCount": len(vectors)}, positions

    def _delete(self, request: Request, body: bytes, index: Index) -> Any:
        rules.check_size(body)
        wanted = as_object(body)
        chosen = [name for name in ("ids", "deleteAll", "filter") if wanted.get(name)]
        if len(chosen) != 1:
            raise Fault(400, rules.INVALID_ARGUMENT, "Exactly one of ids, deleteAll and filter must be given")
        namespace = index.namespaces.get(wanted.get("namespace", ""))
        ids = rules.check_ids(wanted["ids"]) if chosen == ["ids"] else []
        if namespace is None:
            raise Fault(404, rules.NOT_FOUND, "Namespace not found")

        def change(there: dict[str, Any]) -> None:
            gone = ids
            if chosen != ["ids"]:
                condition = wanted.get("filter")
                gone = [name for name, r in there.items() if not condition or rules.passes(r["metadata"], condition)]
            for name in gone:
                there.pop(name, None)

        return {}, self._write(namespace, change)

    def _fetch(self, request: Request, body: bytes, index: Index) -> Any:
        ids = rules.check_ids(request.query_params.getlist("ids"))
        name = request.query_params.get("namespace", "")
        shown = self.shown(index.name, name)
        found = {i: as_record(i, shown[i]) for i in ids if i in shown}
        return {"vectors": found, "namespace": name, "usage": {"readUnits": 1}}, {}

    def _list(self, request: Request, body: bytes, index: Index) -> Any:
        params = request.query_params
        limit = int(params.get("limit", rules.LISTED))
        if not 1 <= limit <= rules.LISTED:
            raise Fault(400, rules.INVALID_ARGUMENT, f"limit must be from 1 to {rules.LISTED}")
        shown = self.shown(index.name, params.get("namespace", ""))
        token = params.get("paginationToken")
        after = base64.b64decode(token).decode() if token else ""
        names = sorted(n for n in shown if n.startswith(params.get("prefix", "")) and n > after)
        content: dict[str, Any] = {
            "vectors": [{"id": name} for name in names[:limit]],
            "namespace": params.get("namespace", ""),
            "usage": {"readUnits": 1},
        }
        if len(names) > limit:
            content["pagination"] = {"next": base64.b64encode(names[limit - 1].encode()).decode()}
        return content, {}

    def _query(self, request: Request, body: bytes, index: Index) -> Any:
        rules.check_size(body)
        wanted = as_object(body)
        top = wanted.get("topK")
        if not isinstance(top, int) or not 1 <= top <= rules.MOST_RESULTS:
            raise Fault(400, rules.INVALID_ARGUMENT, f"topK must be from 1 to {rules.MOST_RESULTS}")
        vector = rules.check_values(wanted.get("vector"), index.dimension)
        name = wanted.get("namespace", "")
        namespace = index.namespaces.get(name, Namespace())
        # The query that ends the lag does not see it ended.
        positions = {"x-pinecone-max-indexed-lsn": str(namespace.indexed)}
        condition = wanted.get("filter")
        shown = {
            i: r for i, r in namespace.shown.items() if condition is None or rules.passes(r["metadata"], condition)
        }
        matches = []
        for found, score in cosines(shown, vector)[:top]:
            match: dict[str, Any] = {"id": found, "score": score}
            if wanted.get("includeMetadata"):
                match["metadata"] = shown[found]["metadata"]
            if wanted.get("includeValues"):
                match["values"] = shown[found]["values"]
            matches.append(match)
        self._move_on(namespace)
        content = {"matches": matches, "namespace": name, "usage": {"readUnits": 1}}
        if len(orjson.dumps(content, option=orjson.OPT_SERIALIZE_NUMPY)) > rules.RESULT_BYTES:
            raise Fault(400, rules.INVALID_ARGUMENT, "The result exceeds the limit of 4 MB")
        return content, positions

    def _move_on(self, namespace: Namespace) -> None:
        left = self._behind.get(id(namespace), 0)
        if left > 0:
            self._behind[id(namespace)] = left - 1
            if left == 1:
                namespace.index()

    def _stats(self, request: Request, body: bytes, index: Index) -> Any:
        counts = {name: {"vectorCount": len(each.shown)} for name, each in index.namespaces.items()}
        return {
            "namespaces": counts,
            "dimension": index.dimension,
            "metric": index.metric,
            "indexFullness": 0,
            "totalVectorCount": sum(each["vectorCount"] for each in counts.values()),
        }, {}

    def _drop(self, request: Request, body: bytes, index: Index) -> Any:
        if index.namespaces.pop(request.path_params["namespace"], None) is None:
            raise Fault(404, rules.NOT_FOUND, "Namespace not found")
        return {}, {}
