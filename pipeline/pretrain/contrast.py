"""InfoNCE against a queue (Sec. 3.1): eq. 1 over images and eq. 2 over proposals are one function.

Shapes: Q queries, K rows of the queue, D width of the embedding.
"""

import torch
from torch import Tensor


def info_nce(
    query_QD: Tensor, key_QD: Tensor, queue_KD: Tensor, excluded_QK: Tensor, temperature: float
) -> Tensor:
    """-log( exp(q.k+ / t) / (exp(q.k+ / t) + sum_i exp(q.k_i / t)) ) for each query (eq. 1, eq. 2).

    The gradient flows into the query alone.  Computed in float32 at least, also under autocast.

    Args:
        query_QD: (Q, D) unit-norm queries.
        key_QD: (Q, D) unit-norm positive keys, in the order of the queries.
        queue_KD: (K, D) unit-norm negative keys; K may be 0.
        excluded_QK: (Q, K) bool; True where a row of the queue is no negative of a query.
        temperature: t of eq. 1, above 0.

    Returns:
        (Q,) losses, at least 0; exactly 0 where everything is excluded.
    """
    with torch.autocast(query_QD.device.type, enabled=False):
        query = at_least_float32(query_QD)
        key, queue = key_QD.detach().to(query.dtype), queue_KD.detach().to(query.dtype)
        positive_Q1 = (query * key).sum(dim=1, keepdim=True) / temperature
        # after the division: -inf / t has no gradient, masking first would make NaN of a learnt t
        negative_QK = (query @ queue.T / temperature).masked_fill(excluded_QK, -torch.inf)
        logits = torch.cat([positive_Q1, negative_QK], dim=1)  # (Q, 1), (Q, K) -> (Q, 1 + K)
        return torch.logsumexp(logits, dim=1) - positive_Q1[:, 0]


def at_least_float32(values: Tensor) -> Tensor:
    """bf16 and fp16 become float32; float64 stays."""
    return values if values.dtype == torch.float64 else values.float()


def unit_rows(rows: Tensor) -> Tensor:
    """l2-normalised rows in float32 at least (fp16 would underflow the epsilon); a zero row stays zero."""
    return torch.nn.functional.normalize(at_least_float32(rows), dim=-1)
