"""Chats rendered by a stranger's template, in a process that can be killed."""
