// One pool for the library. Workers sleep between calls, so PyTorch's own threads keep the cores.
//
// A forward pass is some twenty short calls, one after the other. Workers that slept at once would have to be woken for each of them,
// and workers that never slept would take the cores from whatever else the process does. So a worker looks for the next call during
// about 0.2 ms and sleeps then. Whoever is free takes the next task: a thread that other work slows down takes fewer of them.
#pragma once

namespace adabm {

constexpr int kMaxThreads = 256;

// Runs body(context, task) for every task in 0 .. tasks-1 on at most `threads` threads, the caller among them, and returns when
// all are done. When another call holds the pool, the caller does all of its own work. The first exception that a task throws
// ends the run: tasks not begun are left out, and it leaves parallel_for once all threads have stopped.
void parallel_for(int threads, int tasks, void (*body)(void* context, int task), void* context);

}  // namespace adabm
