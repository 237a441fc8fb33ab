"""An HTTP server of vectors (docs/serving.md).

`protocols` reads the requests of several APIs into one `requests.EmbedRequest`; `media` resolves
what it refers to, `fetch` downloads; `batching` decodes and encodes; `app` answers; `server` runs
it on a socket (`sockets`).
"""
