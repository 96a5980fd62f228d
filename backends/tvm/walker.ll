; Runs a table of kernels on a team of threads: one parallel region for the whole table, a barrier after each kernel.
;
; frame:  0 ptr table, 8 i64 entries, 16 i32 threads wanted, 20 i32 error (0: none, else 1 + index of the entry),
;        24 ptr stamps (i64 per entry, or null), 32 ptr flags, 40 i64 barriers so far
; flags:  of each thread 16 cache lines, one for each round of a barrier
; entry:  0 ptr function, 8 ptr arguments, 16 i32 count, 20 i32 barrier after it               (24 bytes)
; argument: TVMFFIAny, 16 bytes: i32 type (1 int, 4 pointer), i32 zero, i64 value; the first two are tid and nt.

declare void @GOMP_parallel(ptr, ptr, i32, i32)
declare i32 @omp_get_thread_num()
declare i32 @omp_get_num_threads()
declare i32 @sched_yield()
declare i64 @llvm.readcyclecounter()
declare void @llvm.memcpy.p0.p0.i64(ptr, ptr, i64, i1)

define i32 @TVMFFIErrorSetRaisedFromCStrParts(ptr %kind, ptr %parts, i32 %n) {
  ret i32 0
}

; Every thread tells the one 1, 2, 4, ... places on and waits for the one as far behind it (a dissemination barrier: Hensel,
; Finkel and Manber 1988). A flag is a line of its own that one thread writes and one reads, and its number only grows.
define internal void @barrier(ptr %flags, i64 %me, i64 %n, i64 %epoch) {
entry:
  %own.row = mul i64 %me, 1024
  br label %round
round:
  %distance = phi i64 [ 1, %entry ], [ %distance.next, %met ]
  %place = phi i64 [ 0, %entry ], [ %place.next, %met ]
  %sum = add i64 %me, %distance
  %over = icmp uge i64 %sum, %n
  %less = sub i64 %sum, %n
  %other = select i1 %over, i64 %less, i64 %sum
  %other.row = mul i64 %other, 1024
  %other.offset = add i64 %other.row, %place
  %other.flag = getelementptr i8, ptr %flags, i64 %other.offset
  store atomic i64 %epoch, ptr %other.flag release, align 8
  %own.offset = add i64 %own.row, %place
  %own.flag = getelementptr i8, ptr %flags, i64 %own.offset
  br label %spin
spin:
  %i = phi i32 [ 0, %round ], [ %i.next, %again ]
  %seen = load atomic i64, ptr %own.flag acquire, align 8
  %early = icmp slt i64 %seen, %epoch
  br i1 %early, label %wait, label %met
wait:
  call void asm sideeffect "pause", ""()
  %i.next = add i32 %i, 1
  %long = icmp ugt i32 %i.next, 2000
  br i1 %long, label %yield, label %again
yield:
  %ignored = call i32 @sched_yield()
  br label %again
again:
  br label %spin
met:
  %distance.next = shl i64 %distance, 1
  %place.next = add i64 %place, 64
  %more = icmp ult i64 %distance.next, %n
  br i1 %more, label %round, label %done
done:
  ret void
}

define internal void @walk(ptr %frame) {
entry:
  %arguments = alloca [96 x i8], i64 16, align 64
  %result = alloca { i32, i32, i64 }, align 16
  store i32 0, ptr %result
  %tid = call i32 @omp_get_thread_num()
  %nt = call i32 @omp_get_num_threads()
  %tid.wide = sext i32 %tid to i64
  %nt.wide = sext i32 %nt to i64
  %is.first = icmp eq i32 %tid, 0
  %table = load ptr, ptr %frame
  %count.at = getelementptr i8, ptr %frame, i64 8
  %count = load i64, ptr %count.at
  %error.at = getelementptr i8, ptr %frame, i64 20
  %stamps.at = getelementptr i8, ptr %frame, i64 24
  %stamps = load ptr, ptr %stamps.at
  %stamped = icmp ne ptr %stamps, null
  %stamping = and i1 %stamped, %is.first
  %flags.at = getelementptr i8, ptr %frame, i64 32
  %flags = load ptr, ptr %flags.at
  %epoch.at = getelementptr i8, ptr %frame, i64 40
  %epoch.start = load i64, ptr %epoch.at
  %several = icmp sgt i32 %nt, 1
  %any = icmp sgt i64 %count, 0
  br i1 %any, label %loop, label %out
loop:
  %i = phi i64 [ 0, %entry ], [ %i.next, %continue ]
  %epoch = phi i64 [ %epoch.start, %entry ], [ %epoch.now, %continue ]
  %offset = mul i64 %i, 24
  %item = getelementptr i8, ptr %table, i64 %offset
  %function = load ptr, ptr %item
  %given.at = getelementptr i8, ptr %item, i64 8
  %given = load ptr, ptr %given.at
  %n.at = getelementptr i8, ptr %item, i64 16
  %n = load i32, ptr %n.at
  %barrier.at = getelementptr i8, ptr %item, i64 20
  %wants.barrier = load i32, ptr %barrier.at
  %n.wide = sext i32 %n to i64
  %size = mul i64 %n.wide, 16
  call void @llvm.memcpy.p0.p0.i64(ptr align 64 %arguments, ptr align 16 %given, i64 %size, i1 false)
  %tid.slot = getelementptr i8, ptr %arguments, i64 8
  store i64 %tid.wide, ptr %tid.slot
  %nt.slot = getelementptr i8, ptr %arguments, i64 24
  store i64 %nt.wide, ptr %nt.slot
  %code = call i32 %function(ptr null, ptr %arguments, i32 %n, ptr %result)
  %bad = icmp ne i32 %code, 0
  br i1 %bad, label %fail, label %after
fail:
  %i.narrow = trunc i64 %i to i32
  %mark = add i32 %i.narrow, 1
  store atomic i32 %mark, ptr %error.at release, align 4
  br label %after
after:
  %barred = icmp ne i32 %wants.barrier, 0
  %wait = and i1 %barred, %several
  br i1 %wait, label %hold, label %stamp.maybe
hold:
  %epoch.next = add i64 %epoch, 1
  call void @barrier(ptr %flags, i64 %tid.wide, i64 %nt.wide, i64 %epoch.next)
  br label %stamp.maybe
stamp.maybe:
  %epoch.now = phi i64 [ %epoch, %after ], [ %epoch.next, %hold ]
  br i1 %stamping, label %stamp, label %continue
stamp:
  %now = call i64 @llvm.readcyclecounter()
  %stamp.at = getelementptr i64, ptr %stamps, i64 %i
  store i64 %now, ptr %stamp.at
  br label %continue
continue:
  %i.next = add i64 %i, 1
  %more = icmp slt i64 %i.next, %count
  br i1 %more, label %loop, label %last
last:
  br i1 %is.first, label %keep, label %out
keep:
  store i64 %epoch.now, ptr %epoch.at
  br label %out
out:
  ret void
}

define i32 @irx_run(ptr %frame) {
  %nt.at = getelementptr i8, ptr %frame, i64 16
  %nt = load i32, ptr %nt.at
  %error.at = getelementptr i8, ptr %frame, i64 20
  store i32 0, ptr %error.at
  call void @GOMP_parallel(ptr @walk, ptr %frame, i32 %nt, i32 0)
  %error = load atomic i32, ptr %error.at acquire, align 4
  ret i32 %error
}

define i64 @irx_cycles() {
  %now = call i64 @llvm.readcyclecounter()
  ret i64 %now
}
