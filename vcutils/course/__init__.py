"""What teaching needs: pictures drawn by code, notebooks as HTML, exercises with checks, editions, marking."""
