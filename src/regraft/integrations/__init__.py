"""Regraft's methods in other people's training loops; each module needs the library it is for.

`regraft.integrations.hugging_face.FinetuneTrainer`, `regraft.integrations.lightning.Finetune` and
`regraft.integrations.timm_task.FinetuneTask` are imported from their own modules.
"""

__all__: list[str] = []
