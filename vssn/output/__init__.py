"""What people look at or listen to, written from arrays: tables, charts, music, sound and films. Every file is written
whole, or not at all."""
