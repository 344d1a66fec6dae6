-- What speaks against a host's word about a task, in words: for people, and empty where nothing does.
ALTER TABLE tasks ADD COLUMN doubt TEXT NOT NULL DEFAULT '';
