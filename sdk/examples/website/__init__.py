"""Reading a website with manners: what is found, fetched, turned into text and kept. onboarding.py uses it.

`addresses` says where a request may go, `fetching` makes it, `finding` lists a site's pages, `reading` turns one into
text, and `index` keeps them, to be searched. None of them knows a model or a workflow.
"""
