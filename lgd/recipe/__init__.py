"""A recipe of one's own data: what `lgd train --data` chooses, and why."""
