"""The vLLM engine with commands for tests, which a request's id contains.

"slots N" sets the number of slots. "busy" answers whether vLLM's scheduler has any request, and
"free" whether every KV block is free.
"""

from penstock.engine.protocol import Sink
from penstock.engine.slots import Slots
from penstock.engine.vllm.engine import Vllm
from penstock.request import Request


class ProbedVllm(Vllm):
    """vLLM's engine that also answers the commands."""

    async def _run(self, request: Request, sink: Sink) -> None:
        if request.id.startswith("slots "):
            self._slots = Slots(int(request.id.split()[1]))
            answer = ""
        elif request.id == "busy":
            answer = str(await self._llm.engine_core.call_utility_async("has_work"))
        elif request.id == "free":  # vLLM empties the cache only if no block is in use
            answer = str(await self._llm.reset_prefix_cache())
        else:
            await super()._run(request, sink)
            return
        sink.accepted(())
        sink.started()
        sink.delta(answer, 0, ())
        sink.finish("stop", 0)
