mod committer;
mod hanging_transactions;
mod hostile;
