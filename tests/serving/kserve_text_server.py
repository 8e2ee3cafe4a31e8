"""A text model on KServe's own server, run as a script: `kserve_text_server.py --http_port=N`."""

from __future__ import annotations

from typing import Any

from kserve import InferOutput, InferRequest, InferResponse, Model, ModelServer

NAME = "shouter"


class Shouter(Model):  # type: ignore[misc]  # kserve has no types
    """Says everything louder, through V1 and V2."""

    def __init__(self) -> None:
        super().__init__(NAME)
        self.ready = True

    async def predict(self, payload: Any, headers: Any = None, response_headers: Any = None) -> Any:
        """Answer instances with predictions, and a tensor of texts with another."""
        if not isinstance(payload, InferRequest):
            return {"predictions": [text.upper() + "!" for text in payload["instances"]]}
        if (payload.parameters or {}).get("temperature") == 2:
            raise ValueError("/secret")
        texts = [str(text).upper() + "!" for text in payload.inputs[0].data]
        output = InferOutput("output-0", [len(texts)], "BYTES", texts)
        return InferResponse(
            payload.id,
            self.name,
            [output],
            use_binary_outputs=payload.use_binary_outputs,
            requested_outputs=payload.request_outputs,
        )


if __name__ == "__main__":
    ModelServer(enable_grpc=False).start([Shouter()])
