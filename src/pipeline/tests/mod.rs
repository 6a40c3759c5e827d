mod storage_faults;
