pub struct CrashFs;
