"""How the tie picture is drawn: `svg.py` draws what `row.py` places of what `scene.py` says."""
