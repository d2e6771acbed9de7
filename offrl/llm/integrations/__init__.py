"""Our methods inside other trainers of language models; their libraries are needed only to build a trainer."""
