"""A small S3 server for tests: lists, reads and sizes the objects of one bucket, as pyarrow asks for them."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from email.utils import formatdate
from hashlib import md5
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from time import gmtime, strftime, time
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

BUCKET = "documentos"

# Long enough ago that an object with this time is not expected to change within it.
EARLIER = 3_600


@dataclass
class Bucket:
    """Objects by key, and the keys of which the bytes were asked for."""

    port: int = 0
    writes: int = 0
    objects: dict[str, bytes] = field(default_factory=dict)
    times: dict[str, float] = field(default_factory=dict)
    read: list[str] = field(default_factory=list)

    def put(self, key: str, content: bytes) -> None:
        """Write an object, as if some time ago; each later than those before."""
        self.writes += 1
        self.objects[key] = content
        self.times[key] = time() - EARLIER + self.writes

    def address(self, path: str = "", *, secret: str = "clave") -> str:
        """The address of an object or a folder, with all that pyarrow must know."""
        options = f"scheme=http&endpoint_override=127.0.0.1%3A{self.port}&region=us-east-1"
        return f"s3://usuario:{secret}@{BUCKET}/{path}?{options}"


class _Handler(BaseHTTPRequestHandler):
    bucket: Bucket
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self._object(with_content=False)

    def do_GET(self) -> None:
        address = urlsplit(self.path)
        if "list-type" in address.query:
            self._list({name: values[0] for name, values in parse_qs(address.query).items()})
        else:
            self._object(with_content=True)

    def _object(self, *, with_content: bool) -> None:
        key = unquote(urlsplit(self.path).path).removeprefix(f"/{BUCKET}").removeprefix("/")
        if key and key not in self.bucket.objects:
            self._answer(404, b"" if not with_content else b"<Error><Code>NoSuchKey</Code></Error>", {})
            return
        content = self.bucket.objects.get(key, b"")
        headers = {
            "ETag": f'"{md5(content).hexdigest()}"',
            "Last-Modified": formatdate(self.bucket.times.get(key), usegmt=True),
        }
        if not with_content:
            self._answer(200, b"", headers, size=len(content))
            return
        self.bucket.read.append(key)
        first, _, last = self.headers.get("Range", "bytes=0-").removeprefix("bytes=").partition("-")
        part = content[int(first) : int(last) + 1 if last else None]
        headers["Content-Range"] = f"bytes {first}-{int(first) + len(part) - 1}/{len(content)}"
        self._answer(206 if "Range" in self.headers else 200, part, headers)

    def _list(self, query: dict[str, str]) -> None:
        prefix, delimiter = query.get("prefix", ""), query.get("delimiter", "")
        keys = sorted(key for key in self.bucket.objects if key.startswith(prefix))
        folders = dict.fromkeys(
            prefix + key.removeprefix(prefix).split(delimiter)[0] + delimiter
            for key in keys
            if delimiter and delimiter in key.removeprefix(prefix)
        )
        entries = [key for key in keys if not any(map(key.startswith, folders))]
        rows = "".join(
            f"<Contents><Key>{escape(key)}</Key><Size>{len(self.bucket.objects[key])}</Size>"
            f"<LastModified>{strftime('%Y-%m-%dT%H:%M:%S.000Z', gmtime(self.bucket.times[key]))}</LastModified>"
            "</Contents>"
            for key in entries[: int(query.get("max-keys", 1000))]
        )
        rows += "".join(f"<CommonPrefixes><Prefix>{escape(each)}</Prefix></CommonPrefixes>" for each in folders)
        body = (
            '<?xml version="1.0" encoding="UTF-8"?>'
            '<ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">'
            f"<Name>{BUCKET}</Name><Prefix>{escape(prefix)}</Prefix><KeyCount>{len(entries)}</KeyCount>"
            f"<IsTruncated>false</IsTruncated>{rows}</ListBucketResult>"
        )
        self._answer(200, body.encode(), {"Content-Type": "application/xml"})

    def _answer(self, status: int, body: bytes, headers: dict[str, str], size: int | None = None) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body) if size is None else size))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        return


@contextmanager
def serve_bucket() -> Iterator[Bucket]:
    """Serve an empty bucket at a free port."""
    bucket = Bucket()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"bucket": bucket}))
    bucket.port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield bucket
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
