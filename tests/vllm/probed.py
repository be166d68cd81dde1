"""The vLLM engine, which can also be asked what vLLM's core is doing. Runs in the engine's process.

A request whose id is "slots N" sets the number of slots; "busy" is answered with whether vLLM's
scheduler has any request, and "free" with whether every KV block is free.
"""

from penstock.engine.protocol import Sink
from penstock.engine.slots import Slots
from penstock.engine.vllm.engine import Vllm
from penstock.request import Request


class ProbedVllm(Vllm):
    """See above."""

    async def _run(self, request: Request, sink: Sink) -> None:
        if request.id.startswith("slots "):
            self._slots = Slots(int(request.id.split()[1]))
            answer = ""
        elif request.id == "busy":
            answer = str(await self._llm.engine_core.call_utility_async("has_work"))
        elif request.id == "free":  # the cache is only emptied where no block is in use
            answer = str(await self._llm.reset_prefix_cache())
        else:
            await super()._run(request, sink)
            return
        sink.accepted(())
        sink.started()
        sink.delta(answer, 0, ())
        sink.finish("stop", 0)
