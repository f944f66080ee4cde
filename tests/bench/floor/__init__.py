"""The floor: gateway, scheduler and executor with the suite's RPCs and streams, and no engine.

It is what one would write first with grpc.aio and redis-py: no fencing, no lease, no index, no schema, no cursor, no
recovery, no limits. The same number of events of the same sizes goes through the same kind of streams, and what the
engine has to wait for is waited for here.
"""
